"""Uses majorityd from Python, with nothing but the .proto files: python3 client.py PROTO_DIR TEMP_DIR ADDRESS.

Every function whose name starts with `scenario_` is run; a coroutine with grpc.aio. The first that fails ends the run.
"""

import asyncio
import inspect
import pathlib
import queue
import subprocess
import sys
import threading
import time
import traceback
import uuid

try:
    import grpc
    import grpc_tools  # noqa: F401: run as a module below
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status
except ImportError as error:
    sys.exit(
        f"{error}. Install what this script needs, or put a virtual environment with it at target/tools:\n"
        "  python3 -m venv target/tools\n"
        "  target/tools/bin/pip install grpcio grpcio-tools grpcio-status"
    )

PROTOS, GENERATED, ADDRESS = sys.argv[1:]


def generate():
    # What is google's is installed: googleapis-common-protos.
    files = sorted(str(file) for file in pathlib.Path(PROTOS, "majority").rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--python_out={GENERATED}"]
    subprocess.run([*command, f"--grpc_python_out={GENERATED}", *files], check=True)
    sys.path.insert(0, GENERATED)


generate()
from google.protobuf.duration_pb2 import Duration  # noqa: E402
from majority.v1 import common_pb2, kv_pb2, kv_pb2_grpc, lock_pb2, lock_pb2_grpc, queue_pb2, queue_pb2_grpc  # noqa: E402

LIMIT = 60


def stub():
    return lock_pb2_grpc.LockServiceStub(grpc.insecure_channel(ADDRESS))


def kv_stub():
    return kv_pb2_grpc.KvServiceStub(grpc.insecure_channel(ADDRESS))


def queue_stub():
    return queue_pb2_grpc.QueueServiceStub(grpc.insecure_channel(ADDRESS))


def asking(name, owner=None, ttl=60, wait=0):
    return lock_pb2.AcquireRequest(
        name=name, owner=owner, ttl=Duration(seconds=ttl), wait_timeout=Duration(seconds=wait)
    )


def lease_of(response):
    assert response.WhichOneof("outcome") == "lease", response
    return response.lease


def reason_of(error):
    """The reason of an error, and its details by type."""
    status = rpc_status.from_call(error)
    assert status is not None and status.code == error.code().value[0], error
    details = {}
    for detail in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                message = kind()
                detail.Unpack(message)
                details[kind] = message
    info = details[error_details_pb2.ErrorInfo]
    assert info.domain == "majorityd"
    return info.reason, details


def until(wish):
    for _ in range(LIMIT * 100):
        if wish():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to be")


def scenario_acquire_extend_release():
    locks = stub()
    lease = lease_of(locks.Acquire(asking("basic", "ann"), timeout=LIMIT))
    assert lease.owner == "ann" and len(lease.lease_id) == 32 and 0 < lease.fencing_token < 2**53
    assert 0 < lease.remaining.ToTimedelta().total_seconds() < 60
    longer = locks.Extend(
        lock_pb2.ExtendRequest(name="basic", lease_id=lease.lease_id, ttl=Duration(seconds=90)), timeout=LIMIT
    ).lease
    assert longer.fencing_token == lease.fencing_token and longer.ttl.seconds == 90
    release = lock_pb2.ReleaseRequest(name="basic", lease_id=lease.lease_id)
    assert locks.Release(release, timeout=LIMIT).released
    assert not locks.Release(release, timeout=LIMIT).released


def scenario_contention():
    locks = stub()
    lease = lease_of(locks.Acquire(asking("contended", "ann"), timeout=LIMIT))
    response = locks.Acquire(asking("contended", "bob"), timeout=LIMIT)
    assert response.WhichOneof("outcome") == "contention"
    assert response.contention.holder.fencing_token == lease.fencing_token
    # A wait is cut to the deadline, and the answer is there before it.
    response = locks.Acquire(asking("contended", "bob", wait=600), timeout=3)
    assert response.contention.holder.owner == "ann"
    again = lease_of(locks.Acquire(asking("contended", "ann"), timeout=LIMIT))
    assert again.fencing_token == lease.fencing_token and again.lease_id != lease.lease_id
    assert not locks.GetLock(lock_pb2.GetLockRequest(name="contended"), timeout=LIMIT).lock.waiters


def scenario_errors_have_details():
    locks = stub()
    try:
        locks.Acquire(asking("tab\t", "", ttl=0), timeout=LIMIT)
        raise AssertionError("it must be refused")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        reason, details = reason_of(error)
        assert reason == "INVALID_NAME"
        violations = details[error_details_pb2.BadRequest].field_violations
        found = {violation.field: violation.reason for violation in violations}
        assert found == {"name": "INVALID_NAME", "owner": "INVALID_OWNER", "ttl": "INVALID_TTL"}, found
    try:
        locks.Extend(lock_pb2.ExtendRequest(name="nobody's", lease_id="0" * 32), timeout=LIMIT)
        raise AssertionError("it must be refused")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        reason, details = reason_of(error)
        assert reason == "LEASE_LOST"
        assert details[error_details_pb2.ErrorInfo].metadata["lock"] == "nobody's"
        assert error_details_pb2.RetryInfo not in details


def hold_request(name, **others):
    return lock_pb2.HoldRequest(
        name=name,
        owner="ann",
        ttl=Duration(seconds=3),
        disconnect_policy=lock_pb2.DISCONNECT_POLICY_RELEASE,
        **others,
    )


def scenario_hold_until_cancelled():
    locks = stub()
    stream = locks.Hold(hold_request("held"))
    assert next(stream).WhichOneof("event") == "acquired"
    assert next(stream).WhichOneof("event") == "extended"
    assert locks.GetLock(lock_pb2.GetLockRequest(name="held"), timeout=LIMIT).lock.holder.owner == "ann"
    stream.cancel()
    lease_of(locks.Acquire(asking("held", "bob", wait=LIMIT), timeout=LIMIT))


def scenario_hold_until_the_deadline():
    locks = stub()
    stream = locks.Hold(hold_request("held shortly"), timeout=2)
    try:
        assert "acquired" in [event.WhichOneof("event") for event in stream]
        raise AssertionError("its deadline must end it")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    lease_of(locks.Acquire(asking("held shortly", "bob", wait=LIMIT), timeout=LIMIT))


def scenario_hold_is_lost_when_forced():
    locks = stub()
    stream = locks.Hold(hold_request("forced"))
    token = next(stream).acquired.fencing_token
    locks.ForceRelease(lock_pb2.ForceReleaseRequest(name="forced", fencing_token=token), timeout=LIMIT)
    events = list(stream)
    assert events[-1].lost.reason == common_pb2.LOST_REASON_FORCED, events


def scenario_counter_guarded_by_a_lock():
    """Sixteen threads, each with its own channel, that read and write without any other guard."""
    shared = {"value": 0, "inside": 0, "token": 0}
    failures = []

    def work(number):
        try:
            locks = stub()
            for _ in range(10):
                lease = lease_of(locks.Acquire(asking("counter", f"thread {number}", wait=LIMIT), timeout=LIMIT))
                shared["inside"] += 1
                value = shared["value"]
                assert shared["inside"] == 1, "two inside"
                assert lease.fencing_token > shared["token"], "tokens rise"
                shared["token"] = lease.fencing_token
                time.sleep(0.001)
                shared["value"] = value + 1
                shared["inside"] -= 1
                assert locks.Release(
                    lock_pb2.ReleaseRequest(name="counter", lease_id=lease.lease_id), timeout=LIMIT
                ).released
        except Exception:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, "\n".join(failures)
    assert shared["value"] == 160, shared


def scenario_list_and_watch():
    locks = stub()
    watch = locks.WatchLock(lock_pb2.WatchLockRequest(name="list/1"))
    assert not next(watch).HasField("holder")
    leases = [lease_of(locks.Acquire(asking(f"list/{number}", "ann"), timeout=LIMIT)) for number in range(5)]
    assert next(watch).holder.fencing_token == leases[1].fencing_token
    watch.cancel()
    names, token = [], ""
    while True:
        request = lock_pb2.ListLocksRequest(prefix="list/", page_size=2, page_token=token)
        page = locks.ListLocks(request, timeout=LIMIT)
        names += [lock.name for lock in page.locks]
        token = page.next_page_token
        if not token:
            break
    assert names == [f"list/{number}" for number in range(5)], names
    locks.Release(lock_pb2.ReleaseRequest(name="list/0", lease_id=leases[0].lease_id), timeout=LIMIT)
    until(lambda: len(locks.ListLocks(lock_pb2.ListLocksRequest(prefix="list/"), timeout=LIMIT).locks) == 4)


def scenario_keys_one_by_one():
    keys = kv_stub()
    get = kv_pb2.GetRequest(key="py/a")
    assert not keys.Get(get, timeout=LIMIT).HasField("key_value")
    first = keys.Set(kv_pb2.SetRequest(key="py/a", value=b"\x00\xff", absent=True), timeout=LIMIT).key_value
    got = keys.Get(get, timeout=LIMIT).key_value
    assert (got.value, got.version, got.HasField("remaining")) == (b"\x00\xff", first.version, False), got
    swap = kv_pb2.SetRequest(key="py/a", text="new", version=first.version, return_previous=True)
    swap.ttl.FromSeconds(60)
    second = keys.Set(swap, timeout=LIMIT)
    assert second.previous.value == b"\x00\xff" and second.key_value.version > first.version, second
    assert 0 < second.key_value.remaining.ToTimedelta().total_seconds() <= 60
    assert keys.Touch(kv_pb2.TouchRequest(key="py/a"), timeout=LIMIT).version == second.key_value.version
    assert not keys.Get(get, timeout=LIMIT).key_value.HasField("remaining")
    try:
        keys.Set(swap, timeout=LIMIT)
        raise AssertionError("it must be refused")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        reason, details = reason_of(error)
        assert reason == "PRECONDITION_FAILED"
        metadata = details[error_details_pb2.ErrorInfo].metadata
        assert metadata["current_version"] == str(second.key_value.version), metadata
    assert keys.Delete(kv_pb2.DeleteRequest(key="py/a"), timeout=LIMIT).deleted
    assert not keys.Delete(kv_pb2.DeleteRequest(key="py/a"), timeout=LIMIT).deleted


def scenario_counting_with_request_ids():
    """Every increment is sent twice; the sum has each once."""
    failures = []

    def work():
        try:
            keys = kv_stub()
            for _ in range(8):
                request = kv_pb2.IncrementRequest(key="py/n", delta=3, request_id=str(uuid.uuid4()))
                sent = keys.Increment(request, timeout=LIMIT)
                again = keys.Increment(request, timeout=LIMIT)
                assert (again.number, again.repeated, sent.repeated) == (sent.number, True, False)
        except Exception:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, "\n".join(failures)
    assert kv_stub().Get(kv_pb2.GetRequest(key="py/n"), timeout=LIMIT).key_value.value == b"192"


def scenario_keys_in_batches_lists_and_watches():
    keys = kv_stub()
    items = [kv_pb2.SetRequest(key=f"py/batch/{number}", text=str(number)) for number in range(5)]
    taken = kv_pb2.SetRequest(key="py/batch", text="first")
    keys.Set(taken, timeout=LIMIT)
    taken.absent = True
    results = keys.BatchSet(kv_pb2.BatchSetRequest(items=[taken, *items]), timeout=LIMIT).results
    assert [result.WhichOneof("outcome") for result in results] == ["error"] + ["set"] * 5, results
    info = error_details_pb2.ErrorInfo()
    assert results[0].error.details[0].Unpack(info) and info.reason == "PRECONDITION_FAILED", results[0]
    names, token = [], ""
    while True:
        page = keys.ListKeys(
            kv_pb2.ListKeysRequest(prefix="py/batch/", page_size=2, page_token=token, with_values=True), timeout=LIMIT
        )
        names += [(found.key, found.value) for found in page.keys]
        token = page.next_page_token
        if not token:
            break
    assert names == [(f"py/batch/{number}", str(number).encode()) for number in range(5)], names
    asked = kv_pb2.BatchGetRequest(keys=["py/batch/3", "py/nothing", "py/batch/3"])
    entries = keys.BatchGet(asked, timeout=LIMIT).entries
    assert [entry.WhichOneof("outcome") for entry in entries] == ["key_value", "absent", "key_value"], entries

    watch = keys.Watch(kv_pb2.WatchRequest(prefix="py/batch/"))
    assert [next(watch).value.key_value.key for _ in range(5)] == [name for name, _ in names]
    assert next(watch).WhichOneof("event") == "synced"
    keys.Delete(kv_pb2.DeleteRequest(key="py/batch/0"), timeout=LIMIT)
    removed = next(watch).removed
    assert removed.key == "py/batch/0" and not removed.missed, removed
    watch.cancel()


def scenario_a_late_holder_is_fenced_off():
    locks, keys = stub(), kv_stub()
    old = lease_of(locks.Acquire(asking("py/writer", "ann"), timeout=LIMIT))
    locks.Release(lock_pb2.ReleaseRequest(name="py/writer", lease_id=old.lease_id), timeout=LIMIT)
    new = lease_of(locks.Acquire(asking("py/writer", "bob"), timeout=LIMIT))
    for lease, allowed in [(old, True), (new, True), (new, True), (old, False)]:
        fence = kv_pb2.Fence(lock="py/writer", token=lease.fencing_token)
        try:
            keys.Set(kv_pb2.SetRequest(key="py/fenced", text=lease.owner, fence=fence), timeout=LIMIT)
            assert allowed
        except grpc.RpcError as error:
            assert not allowed and reason_of(error)[0] == "FENCED", error
    assert keys.Get(kv_pb2.GetRequest(key="py/fenced"), timeout=LIMIT).key_value.value == b"bob"


def putting(name, *ids, **others):
    items = [queue_pb2.NewItem(id=id, text=f"body of {id}", **others) for id in ids]
    return queue_pb2.PutRequest(queue=name, items=items)


def reserving(name, count=1, wait=0):
    return queue_pb2.ReserveRequest(
        queue=name, max_items=count, lease_ttl=Duration(seconds=60), wait_timeout=Duration(seconds=wait)
    )


def item_lease(item):
    return queue_pb2.ItemLease(id=item.id, lease_id=item.lease_id)


def outcomes(response):
    return [result.outcome for result in response.results]


def scenario_items_are_put_worked_on_and_given_back():
    queues, name = queue_stub(), "py/items"
    put = queues.Put(putting(name, "a", "b"), timeout=LIMIT).results
    assert [(result.put.id, result.put.duplicate) for result in put] == [("a", False), ("b", False)], put
    assert all(result.put.duplicate for result in queues.Put(putting(name, "a", "b"), timeout=LIMIT).results)
    first, second = queues.Reserve(reserving(name, 10), timeout=LIMIT).items
    assert (first.id, first.payload, first.attempt) == ("a", b"body of a", 1), first
    assert 0 < first.remaining.ToTimedelta().total_seconds() <= 60 and 0 < first.fencing_token < 2**53
    assert not queues.Reserve(reserving(name), timeout=LIMIT).items
    nack = queue_pb2.ItemNack(id="a", lease_id=first.lease_id, delay=Duration(), reason="not\nnow")
    assert outcomes(queues.Nack(queue_pb2.NackRequest(queue=name, items=[nack]), timeout=LIMIT)) == [
        queue_pb2.LEASE_OUTCOME_OK
    ]
    again = queues.Reserve(reserving(name, wait=LIMIT), timeout=LIMIT).items[0]
    assert (again.id, again.attempt) == ("a", 2) and again.fencing_token > first.fencing_token, again
    acks = queue_pb2.AckRequest(queue=name, leases=[item_lease(item) for item in (first, again, second)])
    assert outcomes(queues.Ack(acks, timeout=LIMIT))[1:] == [queue_pb2.LEASE_OUTCOME_OK] * 2
    assert outcomes(queues.Ack(acks, timeout=LIMIT)) == [queue_pb2.LEASE_OUTCOME_ALREADY_DONE] * 3
    shown = queues.GetItem(queue_pb2.GetItemRequest(queue=name, id="a"), timeout=LIMIT).item
    assert shown.state == queue_pb2.ITEM_STATE_DONE, shown
    try:
        queues.GetItem(queue_pb2.GetItemRequest(queue=name, id="never"), timeout=LIMIT)
        raise AssertionError("it must be refused")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND and reason_of(error)[0] == "NO_SUCH_ITEM", error


def scenario_items_are_consumed_as_they_come():
    queues, name = queue_stub(), "py/stream"
    commands = queue.SimpleQueue()
    events = queues.Consume(iter(commands.get, None))
    commands.put(queue_pb2.ConsumeRequest(open={"queue": name, "max_in_flight": 2}))
    names = [f"{number:02}" for number in range(20)]
    queues.Put(putting(name, *names), timeout=LIMIT)
    done = []
    while len(done) < len(names):
        event = next(events)
        if event.WhichOneof("event") == "item":
            commands.put(queue_pb2.ConsumeRequest(ack=item_lease(event.item)))
        else:
            assert event.settled.outcome == queue_pb2.LEASE_OUTCOME_OK, event
            done.append(event.settled.lease.id)
    assert sorted(done) == names, done
    # Nothing is in flight, so the stream ends with its client's side.
    commands.put(None)
    assert next(events, None) is None

    # The first message has to open it.
    events = queues.Consume(iter([queue_pb2.ConsumeRequest(ack={"id": "a", "lease_id": "0" * 32})]))
    try:
        next(events)
        raise AssertionError("it must be refused")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and reason_of(error)[0] == "INVALID_COMMAND", error


async def scenario_asyncio_waiters_are_cancelled_and_served():
    async with grpc.aio.insecure_channel(ADDRESS) as channel:
        locks = lock_pb2_grpc.LockServiceStub(channel)
        lease = lease_of(await locks.Acquire(asking("async", "ann"), timeout=LIMIT))
        calls = [locks.Acquire(asking("async", f"waiter {n}", wait=LIMIT), timeout=LIMIT) for n in range(20)]
        tasks = [asyncio.ensure_future(wait_for(call)) for call in calls]

        async def waiters():
            request = lock_pb2.GetLockRequest(name="async")
            return (await locks.GetLock(request, timeout=LIMIT)).lock.waiters

        while not await waiters():
            await asyncio.sleep(0.01)
        for call in calls[1:]:
            call.cancel()
        release = lock_pb2.ReleaseRequest(name="async", lease_id=lease.lease_id)
        assert (await locks.Release(release, timeout=LIMIT)).released
        results = await asyncio.wait_for(asyncio.gather(*tasks), LIMIT)
        served = lease_of(results[0])
        assert served.owner == "waiter 0" and served.fencing_token > lease.fencing_token
        assert results[1:] == [None] * 19, results
        while await waiters():
            await asyncio.sleep(0.01)


async def wait_for(call):
    try:
        return await call
    except asyncio.CancelledError:
        return None


async def scenario_asyncio_hold():
    async with grpc.aio.insecure_channel(ADDRESS) as channel:
        locks = lock_pb2_grpc.LockServiceStub(channel)
        stream = locks.Hold(hold_request("async held"))
        first = await stream.read()
        assert first.WhichOneof("event") == "acquired"
        assert (await stream.read()).extended.fencing_token == first.acquired.fencing_token
        stream.cancel()
        lease_of(await locks.Acquire(asking("async held", "bob", wait=LIMIT), timeout=LIMIT))
        try:
            await locks.Acquire(asking("", "bob"), timeout=LIMIT)
            raise AssertionError("it must be refused")
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            trailer = dict(error.trailing_metadata())["grpc-status-details-bin"]
            assert b"INVALID_NAME" in trailer


def main():
    for name, scenario in list(globals().items()):
        if name.startswith("scenario_"):
            if inspect.iscoroutinefunction(scenario):
                asyncio.run(scenario())
            else:
                scenario()
            print("ok", name.removeprefix("scenario_"))


main()
