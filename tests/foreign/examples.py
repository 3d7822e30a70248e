"""Runs what is in examples/python: python3 examples.py TOP TEMP_DIR ADDRESS. Each `scenario_` is one; the first that fails ends it."""

import asyncio
import inspect
import pathlib
import subprocess
import sys
import threading
import time

TOP, GENERATED, ADDRESS = sys.argv[1:]
PROTOS = pathlib.Path(TOP, "proto")
FILES = sorted(str(file) for file in (PROTOS / "majority").rglob("*.proto"))
# As docs/clients.md has it.
subprocess.run(
    [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--python_out={GENERATED}", f"--grpc_python_out={GENERATED}", *FILES],
    check=True,
)
sys.path[:0] = [GENERATED, str(pathlib.Path(TOP, "examples/python"))]
sys.dont_write_bytecode = True

import grpc  # noqa: E402
import locks  # noqa: E402
import locks_asyncio  # noqa: E402
import worker  # noqa: E402
import worker_asyncio  # noqa: E402
from majority.v1 import lock_pb2, lock_pb2_grpc, queue_pb2, queue_pb2_grpc  # noqa: E402

LIMIT = 60
# Nobody listens there: the examples have to go on to the next.
NOBODY = "127.0.0.1:1"


def locking(*addresses):
    return [lock_pb2_grpc.LockServiceStub(grpc.insecure_channel(address)) for address in addresses]


def queueing(*addresses):
    return [queue_pb2_grpc.QueueServiceStub(grpc.insecure_channel(address)) for address in addresses]


LOCKS, QUEUES = locking(ADDRESS)[0], queueing(ADDRESS)[0]


def holder_of(name):
    return LOCKS.GetLock(lock_pb2.GetLockRequest(name=name), timeout=LIMIT).lock.holder


def force_release(name, token):
    LOCKS.ForceRelease(lock_pb2.ForceReleaseRequest(name=name, fencing_token=token), timeout=LIMIT)


def put(name, *ids):
    items = [queue_pb2.NewItem(id=id, text=f"body of {id}") for id in ids]
    QUEUES.Put(queue_pb2.PutRequest(queue=name, items=items), timeout=LIMIT)


def state_of(name, id):
    return QUEUES.GetItem(queue_pb2.GetItemRequest(queue=name, id=id), timeout=LIMIT).item


def until(wish):
    end = time.monotonic() + LIMIT
    while not wish():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


def raises(kind, function):
    try:
        function()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} did not come")


def scenario_a_block_holds_the_lock_and_lets_it_go():
    lock = locks.Lock(locking(NOBODY, ADDRESS), "block", ttl=3)
    tokens = []
    for _ in range(2):
        with lock as held:
            held.check()
            assert holder_of("block").fencing_token == held.fencing_token
            tokens.append(held.fencing_token)
            other = locks.Lock(locking(ADDRESS), "block")
            assert lock.owner in str(raises(locks.NotAcquired, other.__enter__))
        assert not holder_of("block").owner
    assert tokens[0] < tokens[1]
    with locks.Lock(locking(ADDRESS), "block", ttl=3) as held:
        # Longer than the lease would last.
        time.sleep(4)
        held.check()
    # What the block raises is not hidden, and the lock is let go.
    assert str(raises(ValueError, lambda: fail_under(locks.Lock(locking(ADDRESS), "block")))) == "mine"
    assert not holder_of("block").owner


def fail_under(lock):
    with lock:
        raise ValueError("mine")


def scenario_a_lock_that_is_taken_away_is_told():
    told = threading.Event()

    def block():
        with locks.Lock(locking(ADDRESS), "taken", on_lost=told.set) as held:
            force_release("taken", held.fencing_token)
            assert told.wait(LIMIT)
            raises(locks.LockLost, held.check)

    assert "FORCED" in str(raises(locks.LockLost, block))


def scenario_a_wait_in_line_ends_with_the_lock():
    with locks.Lock(locking(ADDRESS), "line") as first:
        tokens = []

        def wait():
            with locks.Lock(locking(ADDRESS), "line", wait=LIMIT) as held:
                tokens.append(held.fencing_token)

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: LOCKS.GetLock(lock_pb2.GetLockRequest(name="line"), timeout=LIMIT).lock.waiters)
        assert not tokens
    thread.join(LIMIT)
    assert tokens and tokens[0] > first.fencing_token


def scenario_a_lock_that_no_daemon_extends_is_lost_in_time():
    """The stream is there no longer, and no other daemon either."""
    lock = locks.Lock(locking(ADDRESS), "silent", ttl=3)

    def block():
        with lock as held:
            started = time.monotonic()
            held.stubs = locking(NOBODY)
            held.stream.cancel()
            while True:
                held.check()
                assert time.monotonic() < started + 3, "the lease is over, and nobody said so"
                time.sleep(0.02)

    # Cancelled by ourselves is not among what is asked again.
    raises(locks.LockLost, block)


def async_stubs(kind, *addresses):
    return [kind(grpc.aio.insecure_channel(address)) for address in addresses]


async def scenario_asyncio_a_block_holds_the_lock_and_lets_it_go():
    stubs = async_stubs(lock_pb2_grpc.LockServiceStub, NOBODY, ADDRESS)
    tokens = []
    for _ in range(2):
        async with locks_asyncio.Lock(stubs, "aio", ttl=3) as held:
            assert holder_of("aio").fencing_token == held.fencing_token
            tokens.append(held.fencing_token)
            await asyncio.sleep(4)
            try:
                async with locks_asyncio.Lock(stubs, "aio"):
                    raise AssertionError("two have it")
            except locks.NotAcquired:
                pass
        assert not holder_of("aio").owner
    assert tokens[0] < tokens[1]


async def scenario_asyncio_a_lost_lock_cancels_its_block():
    stubs = async_stubs(lock_pb2_grpc.LockServiceStub, ADDRESS)
    for awaits in (True, False):
        try:
            async with locks_asyncio.Lock(stubs, "aio lost") as held:
                force_release("aio lost", held.fencing_token)
                if awaits:
                    await asyncio.sleep(LIMIT)
                else:
                    # It ends in the moment when it is lost.
                    while held.problem is None:
                        await asyncio.sleep(0)
            raise AssertionError("it went on")
        except locks.LockLost as problem:
            assert "FORCED" in str(problem), problem
        # The task itself is not cancelled.
        await asyncio.sleep(0.01)
        assert not asyncio.current_task().cancelling()


async def scenario_asyncio_somebody_elses_cancellation_goes_on():
    stubs = async_stubs(lock_pb2_grpc.LockServiceStub, ADDRESS)
    held = asyncio.Event()

    async def block():
        async with locks_asyncio.Lock(stubs, "aio cancelled"):
            held.set()
            await asyncio.sleep(LIMIT)

    task = asyncio.create_task(block())
    await held.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() and not holder_of("aio cancelled").owner


def scenario_a_worker_does_each_item_and_stops():
    names, stopping, done, failed = [f"{n:02}" for n in range(20)], threading.Event(), [], []

    def function(item):
        if item.id == "07" and item.attempt == 1:
            failed.append(item.fencing_token)
            raise ValueError("not\nnow")
        assert item.payload == f"body of {item.id}".encode()
        done.append(item.id)
        if len(done) == len(names):
            stopping.set()

    settings = queue_pb2.ConfigureQueueRequest(queue="work", backoff_min={"nanos": 100_000_000})
    QUEUES.ConfigureQueue(settings, timeout=LIMIT)
    put("work", *names)
    thread = threading.Thread(
        target=worker.work, args=(queueing(NOBODY, ADDRESS), "work", function), kwargs={"threads": 4, "stopping": stopping}
    )
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive() and sorted(done) == names and len(failed) == 1, (done, failed)
    assert all(state_of("work", name).state == queue_pb2.ITEM_STATE_DONE for name in names)


def scenario_a_worker_is_told_that_an_item_is_lost():
    stopping, lost = threading.Event(), []

    def function(item):
        QUEUES.Purge(queue_pb2.PurgeRequest(queue="lost", states=[queue_pb2.ITEM_STATE_LEASED]), timeout=LIMIT)
        lost.append(item.lost.wait(LIMIT))
        stopping.set()

    # Extended once a second, which is when it is found out.
    QUEUES.ConfigureQueue(queue_pb2.ConfigureQueueRequest(queue="lost", lease_ttl={"seconds": 3}), timeout=LIMIT)
    put("lost", "a")
    worker.work(queueing(ADDRESS), "lost", function, stopping=stopping)
    assert lost == [True]


def scenario_what_fails_when_a_worker_stops_is_given_back():
    stopping = threading.Event()

    def function(item):
        stopping.set()
        # The stream is over then.
        assert item.lost.wait(LIMIT)
        raise ValueError("too late")

    put("stops", "a")
    worker.work(queueing(ADDRESS), "stops", function, stopping=stopping)
    item = state_of("stops", "a")
    assert item.state != queue_pb2.ITEM_STATE_LEASED and "too late" in item.reason, item


async def scenario_asyncio_a_worker_does_each_item_and_loses_one():
    names, done, cancelled = [f"{n:02}" for n in range(20)], [], []

    async def function(item):
        if item.id == "slow":
            QUEUES.Purge(queue_pb2.PurgeRequest(queue="aio", states=[queue_pb2.ITEM_STATE_LEASED]), timeout=LIMIT)
            try:
                await asyncio.sleep(LIMIT)
            except asyncio.CancelledError:
                cancelled.append(item.id)
                raise
        done.append(item.id)

    QUEUES.ConfigureQueue(queue_pb2.ConfigureQueueRequest(queue="aio", lease_ttl={"seconds": 3}), timeout=LIMIT)
    put("aio", *names)
    stubs = async_stubs(queue_pb2_grpc.QueueServiceStub, NOBODY, ADDRESS)
    task = asyncio.create_task(worker_asyncio.work(stubs, "aio", function, at_once=5))
    end = time.monotonic() + LIMIT
    while len(done) < len(names) or any(state_of("aio", name).state != queue_pb2.ITEM_STATE_DONE for name in names):
        assert time.monotonic() < end and not task.done(), (done, task)
        await asyncio.sleep(0.05)
    put("aio", "slow")
    while not cancelled:
        assert time.monotonic() < end and not task.done(), task
        await asyncio.sleep(0.05)
    assert sorted(done) == names
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def main():
    for name, scenario in list(globals().items()):
        if name.startswith("scenario_"):
            asyncio.run(scenario()) if inspect.iscoroutinefunction(scenario) else scenario()
            print("ok", name.removeprefix("scenario_"), flush=True)


main()
