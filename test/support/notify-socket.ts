import { BoundProcess } from "./bound-process.js";
import { untilTestEnds } from "./lifetime.js";

/** Node has no datagram sockets of Unix. */
const RECEIVER = `
  use Socket;
  $| = 1;
  socket(my $socket, PF_UNIX, SOCK_DGRAM, 0) or die $!;
  bind($socket, sockaddr_un($ARGV[0])) or die $!;
  print "listening\\n";
  while (defined recv($socket, my $words, 65536, 0)) { print "$words\\n"; }
`;

/** What systemd has for a service of Type=notify: a socket that the service tells its state to. */
export interface NotifySocket {
  readonly path: string;
  /** The lines of all messages so far. */
  words(): readonly string[];
}

export async function notifySocket(path: string): Promise<NotifySocket> {
  const receiver = untilTestEnds(await BoundProcess.start("perl", ["-e", RECEIVER, path]));
  await new Promise<void>((resolve, reject) => {
    receiver.onOutput(() => resolve());
    void receiver.ended.then(() => reject(new Error(`The receiver ended: ${receiver.stderr}`)));
  });
  return { path, words: () => receiver.stdout.split("\n").slice(1, -1) };
}
