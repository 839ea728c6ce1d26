import { connect, type Socket } from "node:net";
import { untilTestEnds } from "../../../../support/lifetime.js";
import { Peer } from "../../../nbd-client-ts/support/scripted-server.js";
import { u32 } from "../../../nbd-client-ts/support/server-bytes.js";

/** A client that says exactly what a test wants it to. */
export class RawClient {
  readonly socket: Socket;
  readonly peer: Peer;

  constructor(port: number) {
    this.socket = connect({ host: "127.0.0.1", port });
    this.peer = new Peer(this.socket);
    untilTestEnds({
      [Symbol.asyncDispose]: () => {
        this.socket.destroy();
        return Promise.resolve();
      },
    });
  }

  /** Greeted, and with its flags sent. */
  static async greeted(port: number, flags = 3): Promise<RawClient> {
    const client = new RawClient(port);
    await client.peer.receive(18);
    await client.peer.send(u32(flags));
    return client;
  }

  async ask(option: number, data: Buffer = Buffer.alloc(0)): Promise<{ type: number; payload: Buffer }[]> {
    await this.peer.send(optionRequest(option, data));
    const replies = [];
    for (;;) {
      const header = await this.peer.receive(20);
      if (header.readUInt32BE(8) !== option) throw new Error("A reply to another option");
      const reply = {
        type: header.readUInt32BE(12),
        payload: await this.peer.receive(header.readUInt32BE(16)),
      };
      replies.push(reply);
      if (reply.type === 1 || reply.type >= 0x80000000) return replies;
    }
  }

  /** The type of the last reply. */
  async verdict(option: number, data?: Buffer): Promise<number | undefined> {
    return (await this.ask(option, data)).at(-1)?.type;
  }
}

export function optionRequest(option: number, data: Buffer = Buffer.alloc(0)): Buffer {
  return Buffer.concat([Buffer.from("IHAVEOPT"), u32(option), u32(data.length), data]);
}

/** The data of GO and INFO without info requests. */
export function goData(name: string, infos: Buffer = Buffer.alloc(2)): Buffer {
  return Buffer.concat([u32(Buffer.byteLength(name)), Buffer.from(name), infos]);
}

export function contextData(name: string, ...queries: string[]): Buffer {
  const strings = queries.flatMap((query) => [u32(Buffer.byteLength(query)), Buffer.from(query)]);
  return Buffer.concat([goData(name, u32(queries.length)), ...strings]);
}
