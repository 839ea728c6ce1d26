/** The client is at fault, or is not allowed: its connection is closed, and the reason goes to the log, not to the client. */
export class Refusal extends Error {
  override readonly name = "Refusal";
}
