#!/usr/bin/env python3
"""Pulls the disks of a domain into raw files: all of them at first, then only what changed since the last time.

DIRECTORY gets <target>.raw for each disk, and state.json. While state.json says `"complete": false`, the files are
between two moments: a pull is under way, or one was broken off. Run the program again then; it needs no other repair.
How to make the stubs that it imports: proto/README.md. Exit codes: 0 done, 1 failed.
"""

import argparse
import fcntl
import json
import os
import signal
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import error_info_pb2
import grpc
import nbd
from fleece.v1 import block_snapshot_pb2 as snapshots_pb
from fleece.v1 import block_snapshot_pb2_grpc, checkpoint_pb2_grpc, domain_pb2_grpc
from fleece.v1 import checkpoint_pb2 as checkpoints_pb
from fleece.v1 import domain_pb2 as domains_pb

MIB = 1024 * 1024
PIECE = 2 * MIB  # how much is asked for at a time; NBD allows 32 MiB
STATUS_STEP = 1024 * MIB  # how much of a disk is mapped at a time; NBD allows just under 4 GiB
CHANGED = 1  # bit 0 of qemu:dirty-bitmap:…
# The same call may succeed a little later. All calls that are made here may be repeated.
RETRIED = {"DOMAIN_BUSY", "CHECKPOINT_BUSY", "AGENT_UNREACHABLE"}
CHANGES_UNKNOWN = {"CHECKPOINT_NOT_FOUND", "CHECKPOINT_INVALID"}
NO_DEADLINE = None


class AgentError(Exception):
    """A failed call. `code` is the stable one, such as DOMAIN_BUSY; the message is for people."""

    def __init__(self, error: grpc.RpcError):
        self.code = stable_code(error)
        super().__init__(f"{error.details()} ({self.code})")


def stable_code(error: grpc.RpcError) -> str:
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in error_info_pb2.Status.FromString(value).details:
            if detail.type_url.endswith("/google.rpc.ErrorInfo"):
                return error_info_pb2.ErrorInfo.FromString(detail.value).reason
    # gRPC itself failed: there is no agent, or the connection broke.
    return "AGENT_UNREACHABLE" if error.code() is grpc.StatusCode.UNAVAILABLE else error.code().name


class Agent:
    """The calls of the agent. Those that find it busy or away are repeated until the patience ends."""

    def __init__(self, socket: str, patience_s: float):
        channel = grpc.insecure_channel(f"unix:{socket}", [("grpc.max_reconnect_backoff_ms", 2000)])
        self.patience_s = patience_s
        self.domains = domain_pb2_grpc.DomainsStub(channel)
        self.snapshots = block_snapshot_pb2_grpc.BlockSnapshotsStub(channel)
        self.exports = block_snapshot_pb2_grpc.BlockExportsStub(channel)
        self.checkpoints = checkpoint_pb2_grpc.CheckpointsStub(channel)

    def call(self, method, request, timeout_s=300):
        give_up = time.monotonic() + self.patience_s
        while True:
            try:
                return method(request, timeout=timeout_s)
            except grpc.RpcError as error:
                failure = AgentError(error)
            if failure.code not in RETRIED or time.monotonic() > give_up:
                raise failure
            time.sleep(1)

    def every(self, method, request, items: str):
        """The items of all pages of a list."""
        while True:
            page = self.call(method, request)
            yield from getattr(page, items)
            if not page.HasField("next_page_token"):
                return
            request.page_token = page.next_page_token

    def create(self, domain: str, name: str, lease_s: float):
        """A snapshot of all disks, with a checkpoint of the same name."""
        request = snapshots_pb.CreateBlockSnapshotRequest(domain=domain, name=name, lease_ms=int(lease_s * 1000))
        request.checkpoint.name = name
        try:
            return self.call(self.snapshots.Create, request)
        except AgentError as error:
            if error.code != "ALREADY_EXISTS":
                raise
            # The name is ours alone, so this is our own call, whose answer was lost.
            return self.call(self.snapshots.Get, snapshots_pb.GetBlockSnapshotRequest(domain=domain, name=name))

    def succeed(self, domain: str, name: str):
        """Says that all was read and stored. Only if this returns does the data count."""
        try:
            self.call(self.snapshots.Delete, snapshots_pb.DeleteBlockSnapshotRequest(domain=domain, name=name))
        except AgentError as error:
            if error.code != "SNAPSHOT_NOT_FOUND":
                raise
            # Gone: by a call whose answer was lost, or by its lease. Only success leaves the checkpoint.
            self.call(self.checkpoints.Get, checkpoints_pb.GetCheckpointRequest(domain=domain, name=name))

    def fail(self, domain: str, name: str):
        """Gives the snapshot up, and its checkpoint: the next pull takes the changes from the one before."""
        request = snapshots_pb.DeleteBlockSnapshotRequest(domain=domain, name=name, failed=True)
        try:
            self.call(self.snapshots.Delete, request)
        except AgentError as error:
            if error.code != "SNAPSHOT_NOT_FOUND":
                raise


class Lease:
    """Renews a snapshot's lease in the background. `lost` says why that is of no use any more."""

    def __init__(self, agent: Agent, snapshot):
        self.agent, self.snapshot = agent, snapshot
        self.lost: Exception | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _renew(self):
        request = snapshots_pb.RenewBlockSnapshotRequest(domain=self.snapshot.domain, name=self.snapshot.name)
        while not self._done.wait(self.snapshot.lease_ms / 1000 / 3):
            try:
                self.agent.snapshots.Renew(request, timeout=30)
            except grpc.RpcError as error:
                failure = AgentError(error)
                # Anything else may be over before the lease is: the agent is busy, or starts anew.
                if failure.code == "SNAPSHOT_NOT_FOUND":
                    self.lost = failure
                    return


class Store:
    """The directory: whose files are of which checkpoint. One process at a time."""

    def __init__(self, directory: str, domain: str):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"incremental_pull: another process works on {directory}")
        self.path = directory
        try:
            with open(self.file("state.json"), encoding="utf-8") as file:
                self.state = json.load(file)
        except FileNotFoundError:
            # The id marks our snapshots and checkpoints among those of others.
            self.state = {"id": uuid.uuid4().hex[:8], "domain": domain, "complete": False, "disks": {}}
        if self.state["domain"] != domain:
            raise SystemExit(f"incremental_pull: {directory} is of domain {self.state['domain']}")

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def save(self):
        draft = self.file("state.json.new")
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(self.state, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, self.file("state.json"))
        os.fsync(self._directory)

    def base(self, target: str, identity: dict) -> str | None:
        """The checkpoint that <target>.raw is of, if it is of this very disk."""
        known = self.state["disks"].get(target)
        path = self.file(f"{target}.raw")
        if known is None or known["identity"] != identity or not os.path.exists(path):
            return None
        return known["checkpoint"] if os.path.getsize(path) == identity["size"] else None


def connect(export) -> nbd.NBD:
    disk = nbd.NBD()
    disk.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    if export.changes_context:
        disk.add_meta_context(export.changes_context)
    disk.connect_uri(export.uri)
    # A server may decline a context. Without the map of changes, "nothing changed" would be a lie.
    if export.changes_context and not disk.can_meta_context(export.changes_context):
        raise RuntimeError(f"{export.uri} does not offer {export.changes_context}")
    return disk


def pieces(disk: nbd.NBD, export):
    """Yields (offset, length, is_zero) for everything that is to be written, in pieces that fit into a request.

    Without a map of changes that is all but the zeroes: the file is then new.
    """
    offset = 0
    while offset < export.size_bytes:
        maps = {}
        disk.block_status(
            min(STATUS_STEP, export.size_bytes - offset),
            offset,
            lambda context, _offset, entries, _error: maps.__setitem__(context, list(entries)) or 0,
        )
        allocation = maps.get(nbd.CONTEXT_BASE_ALLOCATION)
        changes = maps[export.changes_context] if export.changes_context else None
        for length, zero, changed in overlay(allocation, changes, export.size_bytes - offset):
            if changed if export.changes_context else not zero:
                for start in range(offset, offset + length, PIECE):
                    yield start, min(PIECE, offset + length - start), zero
            offset += length


def overlay(allocation, changes, rest: int):
    """Two answers for the same place need not have the same borders, nor the same end: cuts them into common runs."""
    allocation = list(runs(allocation or [rest, 0], nbd.STATE_ZERO))
    changes = list(runs(changes or [rest, CHANGED], CHANGED))
    while allocation and changes:
        (length_a, zero), (length_c, changed) = allocation.pop(0), changes.pop(0)
        length = min(length_a, length_c)
        if length_a > length:
            allocation.insert(0, (length_a - length, zero))
        if length_c > length:
            changes.insert(0, (length_c - length, changed))
        yield length, zero, changed


def runs(entries, bit: int):
    """libnbd gives length, flags, length, flags, …"""
    return ((length, flags & bit != 0) for length, flags in zip(entries[::2], entries[1::2]))


def copy(export, file: int, connections: int, lease: Lease):
    """Reads over several connections, which the exports allow. Gives the bytes read, and those written as zeroes."""
    mapper = connect(export)
    todo = pieces(mapper, export)
    lock, stop = threading.Lock(), threading.Event()
    totals = [0, 0]

    def work():
        disk = connect(export)
        try:
            while not stop.is_set():
                if lease.lost:
                    raise lease.lost
                with lock:
                    piece = next(todo, None)
                    if piece is None:
                        return
                    totals[piece[2]] += piece[1]
                offset, length, is_zero = piece
                # A changed range that reads as zeroes was zeroed or discarded: leaving it out would keep the old data.
                content = bytes(length) if is_zero else disk.pread(length, offset)
                if os.pwrite(file, content, offset) != length:
                    raise OSError("A write was cut short")
        except BaseException:
            stop.set()
            raise
        finally:
            disk.shutdown()

    with ThreadPoolExecutor(connections) as pool:
        workers = [pool.submit(work) for _ in range(connections)]
        try:
            for worker in workers:
                worker.result()
        finally:
            stop.set()
    mapper.shutdown()
    return totals


def start_export(agent: Agent, snapshot, target: str, since: str | None):
    """Offers one disk. Where the changes since then are not known, all of it: `changes_context` is then empty."""
    request = snapshots_pb.StartBlockExportsRequest(domain=snapshot.domain, snapshot=snapshot.name, disks=[target])
    if since is not None:
        request.since = since
    try:
        # Without a deadline: a staged export is copied as a whole first.
        return agent.call(agent.exports.Start, request, NO_DEADLINE).exports[0]
    except AgentError as error:
        if since is None or error.code not in CHANGES_UNKNOWN:
            raise
        print(f"{target}: {error}", file=sys.stderr)
        return start_export(agent, snapshot, target, None)


def pull_disk(agent: Agent, store: Store, snapshot, target: str, identity: dict, lease: Lease, connections: int):
    export = start_export(agent, snapshot, target, store.base(target, identity))
    is_full = not export.changes_context
    file = os.open(store.file(f"{target}.raw"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        if is_full:
            # From here on the file is of no checkpoint, whatever happens.
            store.state["disks"].pop(target, None)
            store.save()
            os.ftruncate(file, 0)
            os.ftruncate(file, export.size_bytes)
        read, zeroed = copy(export, file, connections, lease)
        os.fsync(file)
    finally:
        os.close(file)
    level = "full" if is_full else f"changes since {export.since}"
    print(f"{target}: {level}, {read} bytes read, {zeroed} bytes of zeroes", flush=True)


def pull(agent: Agent, store: Store, domain: str, lease_s: float, connections: int):
    mark = f"pull-{store.state['id']}-"
    # The directory is locked, so an open snapshot of ours is of a run that was killed.
    for old in agent.every(agent.snapshots.List, snapshots_pb.ListBlockSnapshotsRequest(domain=domain), "snapshots"):
        if old.name.startswith(mark):
            agent.fail(domain, old.name)
    disks = agent.call(agent.domains.Get, domains_pb.GetDomainRequest(domain=domain)).disks
    files = {disk.target: disk.file for disk in disks}
    name = mark + datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    try:
        snapshot = agent.create(domain, name, lease_s)
        identities = {d.target: {"file": files.get(d.target), "size": d.size_bytes} for d in snapshot.disks}
        store.state["complete"] = False
        store.save()
        with Lease(agent, snapshot) as lease:
            for target, identity in identities.items():
                pull_disk(agent, store, snapshot, target, identity, lease, connections)
            agent.succeed(domain, name)
    except BaseException:
        try:
            agent.fail(domain, name)
        except AgentError as trouble:
            print(f"The snapshot ends with its lease: {trouble}", file=sys.stderr)
        raise
    # In this order: whoever is killed in between still knows a checkpoint that exists and comes before the content.
    store.state["disks"] = {
        target: {"checkpoint": name, "identity": identity} for target, identity in identities.items()
    }
    store.state["complete"] = True
    store.save()
    request = checkpoints_pb.ListCheckpointsRequest(domain=domain)
    for old in list(agent.every(agent.checkpoints.List, request, "checkpoints")):
        if old.name.startswith(mark) and old.name != name:
            agent.call(agent.checkpoints.Delete, checkpoints_pb.DeleteCheckpointRequest(domain=domain, name=old.name))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("socket", help="the agent's Unix socket, for example /run/fleece/agent.sock")
    parser.add_argument("domain", help="name of the domain in the agent's configuration")
    parser.add_argument("directory", help="where the raw files are; made if missing")
    parser.add_argument("--connections", type=int, default=4, help="NBD connections for each disk (4)")
    parser.add_argument("--lease", type=float, default=300, metavar="SECONDS", help="lease of the snapshot (300)")
    parser.add_argument(
        "--patience", type=float, default=60, metavar="SECONDS", help="how long to ask a busy agent (60)"
    )
    args = parser.parse_args()
    # So that `kill` ends it as Ctrl-C does, with the snapshot given up at once and not at the end of its lease.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        store = Store(args.directory, args.domain)
        pull(Agent(args.socket, args.patience), store, args.domain, args.lease, args.connections)
    except KeyboardInterrupt:
        raise SystemExit("incremental_pull: interrupted")
    except (AgentError, OSError, RuntimeError, nbd.Error) as error:
        raise SystemExit(f"incremental_pull: {error}")


if __name__ == "__main__":
    main()
