"""A lock as an `async with` block, over the stream of LockService.Hold.

    async with Lock([stub], "report", wait=60) as held:
        await write(page, held.fencing_token)

As in locks.py, but nobody has to ask: when the lock may be somebody else's, the block is cancelled and ends with LockLost. It gets no
further than its next `await`, so what it does without one should be short; and the fencing token is still for what the lock protects.
"""

import asyncio
import sys
import time
import uuid

import grpc
from locks import PATIENCE, REPEATABLE, Lease, LockLost, NotAcquired, hold_request
from majority.v1 import lock_pb2, lock_pb2_grpc


class Lock:
    """A lock to be held by an `async with` block. One object is one owner, and can be used again."""

    def __init__(self, stubs, name, *, ttl=30.0, wait=0.0):
        self.stubs, self.name, self.ttl, self.wait = stubs, name, ttl, wait
        self.owner = str(uuid.uuid4())

    @property
    def fencing_token(self):
        return self.lease.fencing_token

    async def __aenter__(self):
        self.lease, self.problem = Lease(), None
        acquired = asyncio.get_running_loop().create_future()
        self.keeper = asyncio.create_task(self._keep(asyncio.current_task(), acquired))
        try:
            async with asyncio.timeout(self.wait + PATIENCE):
                await acquired
        except BaseException as problem:
            self.keeper.cancel()
            lost = self.problem is not None and asyncio.current_task().uncancel() == 0
            await self._stop()
            if lost:
                raise self.problem from None
            if isinstance(problem, TimeoutError):
                raise NotAcquired("no daemon has answered in time") from None
            raise
        return self

    async def __aexit__(self, kind, error, _):
        self.keeper.cancel()
        lost = self.problem is not None
        # The cancellation that this lock asked for ends here; somebody else's goes on.
        others = asyncio.current_task().uncancel() if lost else 0
        if lost and kind is None:
            # The block ended before it was reached by it.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if others:
                    raise
        await self._stop()
        if lost and not others and kind in (None, asyncio.CancelledError):
            raise self.problem

    async def _stop(self):
        self.keeper.cancel()
        await asyncio.wait([self.keeper])
        if self.lease.lease_id is not None:
            await self._release()

    async def _release(self):
        request = lock_pb2.ReleaseRequest(name=self.name, lease_id=self.lease.lease_id)
        for stub in self.stubs:
            try:
                await stub.Release(request, timeout=PATIENCE / len(self.stubs))
                return
            except grpc.RpcError:
                # The next one; or it runs out by itself.
                pass

    async def _keep(self, block, acquired):
        """Reads streams until the lock is lost, and then cancels the block."""
        reader = asyncio.create_task(self._read(acquired))
        try:
            while not reader.done():
                left = None if self.lease.until is None else self.lease.until - time.monotonic()
                if left is not None and left <= 0:
                    break
                # An extension may have moved the end meanwhile; then there is another round.
                news = {reader} if left is not None else {reader, acquired}
                await asyncio.wait(news, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reader.cancel()
            await asyncio.wait([reader])
        problem = LockLost("the lease has run out") if reader.cancelled() else reader.exception()
        if not acquired.done():
            acquired.set_exception(problem)
        elif not acquired.cancelled():
            self.problem = problem
            block.cancel()

    async def _read(self, acquired):
        turn = 0
        while True:
            try:
                stream = self.stubs[turn % len(self.stubs)].Hold(hold_request(self.name, self.owner, self.ttl, self.wait))
                async for event in stream:
                    self.lease.see(event, time.monotonic())
                    if self.lease.until is not None and not acquired.done():
                        acquired.set_result(None)
            except grpc.RpcError as error:
                if error.code() not in REPEATABLE:
                    raise (NotAcquired if self.lease.until is None else LockLost)(error.details()) from error
            turn += 1
            if turn % len(self.stubs) == 0:
                await asyncio.sleep(0.2)


async def main(addresses):
    stubs = [lock_pb2_grpc.LockServiceStub(grpc.aio.insecure_channel(address)) for address in addresses]
    async with Lock(stubs, "example", wait=60) as held:
        for second in range(10):
            print(f"second {second} under token {held.fencing_token}", flush=True)
            await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["127.0.0.1:7480"]))
