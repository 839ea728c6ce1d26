/** Tells a web server something. */
export interface Webhooks {
  /** Resolves when it has answered that it took it. Fails with an error that does not name the address: it may be secret. */
  post(url: string, json: string, signal: AbortSignal): Promise<void>;
}
