"""A lock as a `with` block, over the stream of LockService.Hold.

    with Lock([stub], "report", wait=60) as held:
        for page in pages:
            held.check()                          # raises LockLost
            write(page, held.fencing_token)

The daemon extends the lease for as long as the stream is read. When the stream breaks, the lock is taken over through the next of
the stubs, in time, under the same fencing token. What can't be known is taken for lost: once the lease may have run out, by the clock
of this process, `check` raises LockLost, `on_lost` has been called, and the block ends with LockLost unless it raised something else.

Python can't stop what another thread is doing, so the block has to ask, before whatever the lock protects. It may still come too late:
a process may be stopped between the check and the write. So hand the fencing token to what the lock protects, and let that refuse a
lower one than it has seen.

docs/clients.md says how `majority.v1` is made from the .proto files.
"""

import sys
import threading
import time
import uuid

import grpc
from google.protobuf.duration_pb2 import Duration
from majority.v1 import common_pb2, lock_pb2, lock_pb2_grpc

# For how long an event may have been under way; by so much earlier the lease is taken to end.
UNDER_WAY_MAX = 1.0
# An attempt to acquire takes this long, besides its wait in line, until it is given up.
PATIENCE = 10.0
# The daemon is not there, or goes away, or too much is asked of it. The same may be asked again, because it has an owner.
REPEATABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class NotAcquired(Exception):
    """Somebody else has the lock, also at the end of the wait, or no daemon could be asked."""


class LockLost(Exception):
    """The lock may be somebody else's: stop what it protects."""


def duration(seconds):
    return Duration(nanos=round(seconds * 1e9) % 10**9, seconds=round(seconds * 1e9) // 10**9)


def hold_request(name, owner, ttl, wait):
    return lock_pb2.HoldRequest(name=name, owner=owner, ttl=duration(ttl), wait_timeout=duration(wait))


class Lease:
    """What the events of the streams have said so far. Knows neither threads nor coroutines, and is told the time."""

    def __init__(self):
        self.fencing_token = None
        self.lease_id = None
        self.until = None

    def see(self, event, now):
        kind = event.WhichOneof("event")
        if kind in ("acquired", "extended"):
            lease = getattr(event, kind)
            # To be released at the end, whatever it is.
            self.lease_id = lease.lease_id
            if self.fencing_token not in (None, lease.fencing_token):
                raise LockLost("it was free for a while, and others may have had it")
            self.fencing_token = lease.fencing_token
            self.until = now + lease.remaining.ToTimedelta().total_seconds() - UNDER_WAY_MAX
        elif kind == "timed_out":
            holder = event.timed_out.holder.owner or "somebody in line"
            raise (NotAcquired if self.until is None else LockLost)(f"{holder} has it")
        elif kind == "lost":
            raise LockLost(common_pb2.LostReason.Name(event.lost.reason))
        # `waiting` and `jeopardy` change nothing: in jeopardy the lease ends when it was to end. After `ended` the next
        # daemon is asked.


class Lock:
    """A lock to be held by a `with` block. One object is one owner, and can be used again."""

    def __init__(self, stubs, name, *, ttl=30.0, wait=0.0, on_lost=lambda: None):
        self.stubs, self.name, self.ttl, self.wait, self.on_lost = stubs, name, ttl, wait, on_lost
        self.owner = str(uuid.uuid4())

    @property
    def fencing_token(self):
        return self.lease.fencing_token

    def check(self):
        """Raises LockLost if the lock may be somebody else's by now."""
        if self.problem is None and time.monotonic() >= self.lease.until:
            self.problem = LockLost("the lease has run out")
        if self.problem is not None:
            raise self.problem

    def __enter__(self):
        self.lease, self.problem = Lease(), None
        self.changed = threading.Condition()
        self.stopping, self.stream = False, None
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        with self.changed:
            answered = self.changed.wait_for(lambda: self.lease.until or self.problem, self.wait + PATIENCE)
        if self.problem is not None or not answered:
            self._stop()
            raise self.problem or NotAcquired("no daemon has answered in time")
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, kind, error, _):
        problem = self.problem
        self._stop()
        self.watcher.join()
        if problem is not None and kind is None:
            raise problem

    def _stop(self):
        with self.changed:
            self.stopping = True
            if self.stream is not None:
                self.stream.cancel()
            self.changed.notify_all()
        self.reader.join()
        if self.lease.lease_id is not None:
            self._release()

    def _release(self):
        request = lock_pb2.ReleaseRequest(name=self.name, lease_id=self.lease.lease_id)
        for stub in self.stubs:
            try:
                stub.Release(request, timeout=PATIENCE / len(self.stubs))
                return
            except grpc.RpcError:
                # The next one; or it runs out by itself.
                pass

    def _read(self):
        """Reads streams, one after the other, until the lock is lost or let go."""
        turn = 0
        while self.problem is None and not self.stopping:
            try:
                self._read_one(self.stubs[turn % len(self.stubs)])
            except grpc.RpcError as error:
                if error.code() not in REPEATABLE and not self.stopping:
                    self._end((NotAcquired if self.lease.until is None else LockLost)(error.details()))
            except (NotAcquired, LockLost) as problem:
                self._end(problem)
            turn += 1
            if turn % len(self.stubs) == 0:
                with self.changed:
                    self.changed.wait_for(lambda: self.stopping, 0.2)

    def _read_one(self, stub):
        with self.changed:
            if self.stopping:
                return
            self.stream = stub.Hold(hold_request(self.name, self.owner, self.ttl, self.wait))
        for event in self.stream:
            with self.changed:
                self.lease.see(event, time.monotonic())
                self.changed.notify_all()

    def _end(self, problem):
        with self.changed:
            self.problem = self.problem or problem
            self.changed.notify_all()

    def _watch(self):
        """Tells of the loss, also where no stream does."""
        with self.changed:
            while not self.stopping and self.problem is None:
                left = self.lease.until - time.monotonic()
                if left <= 0:
                    self.problem = LockLost("the lease has run out")
                else:
                    self.changed.wait(left)
            if self.stopping:
                return
        self.on_lost()


def main(addresses):
    stubs = [lock_pb2_grpc.LockServiceStub(grpc.insecure_channel(address)) for address in addresses]
    with Lock(stubs, "example", wait=60, on_lost=lambda: print("lost")) as held:
        for second in range(10):
            held.check()
            print(f"second {second} under token {held.fencing_token}", flush=True)
            time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1:] or ["127.0.0.1:7480"])
