import type { Row, Run } from "./figures.js";

/** Without `run`, the client could not be had, and `note` says why. */
export type Client = { readonly name: string; readonly note?: string; run?(): Promise<Run> };

/** Every client runs once in each round, so that what else the machine does falls on all of them. */
export async function inTurn(clients: readonly Client[], rounds: number): Promise<Row[]> {
  const runs = clients.map((): Run[] => []);
  for (let round = 0; round < rounds; round += 1) {
    for (const [index, client] of clients.entries()) {
      const run = await client.run?.();
      if (run !== undefined) runs[index]?.push(run);
    }
  }
  return clients.map(({ name, note }, index) => ({
    name,
    runs: runs[index] ?? [],
    ...(note === undefined ? {} : { note }),
  }));
}
