"""Works on the items of a queue, over the stream of QueueService.Consume, with coroutines.

    await work([stub], "mail", send, at_once=100)

As in worker.py, but nobody has to look: when an item is lost, the coroutine that works on it is cancelled.
"""

import asyncio
import sys

import grpc
from majority.v1 import queue_pb2, queue_pb2_grpc
from worker import REPEATABLE


async def work(stubs, name, function, *, at_once=1):
    """Calls function(item) for each item, a majority.v1.ReservedItem, until it is cancelled; then what is in flight is, too."""
    turn = 0
    while True:
        try:
            await work_on_one_stream(stubs[turn % len(stubs)], name, function, at_once)
        except grpc.RpcError as error:
            if error.code() not in REPEATABLE:
                raise
        turn += 1
        await asyncio.sleep(0.2)


async def work_on_one_stream(stub, name, function, at_once):
    stream = stub.Consume()
    await stream.write(queue_pb2.ConsumeRequest(open={"queue": name, "max_in_flight": at_once}))
    in_flight = {}
    # Two writes at a time are not allowed.
    writing = asyncio.Lock()
    try:
        async for event in stream:
            kind = event.WhichOneof("event")
            if kind == "item":
                item = event.item
                in_flight[item.lease_id] = asyncio.create_task(work_on(stream, function, item, writing))
            elif kind == "settled":
                in_flight.pop(event.settled.lease.lease_id, None)
            elif kind == "lost" and event.lost.lease.lease_id in in_flight:
                in_flight.pop(event.lost.lease.lease_id).cancel()
    finally:
        # Nobody extends their leases any more.
        for task in in_flight.values():
            task.cancel()
        await asyncio.gather(*in_flight.values(), return_exceptions=True)
        stream.cancel()


async def work_on(stream, function, item, writing):
    try:
        await function(item)
    except Exception as error:  # noqa: BLE001: whatever it is, the item comes again
        nack = queue_pb2.ItemNack(id=item.id, lease_id=item.lease_id, reason=repr(error)[:1000])
        command = queue_pb2.ConsumeRequest(nack=nack)
    else:
        command = queue_pb2.ConsumeRequest(ack=queue_pb2.ItemLease(id=item.id, lease_id=item.lease_id))
    async with writing:
        await stream.write(command)


async def main(addresses):
    stubs = [queue_pb2_grpc.QueueServiceStub(grpc.aio.insecure_channel(address)) for address in addresses]

    async def show(item):
        print(item.id, item.payload, flush=True)

    await work(stubs, "example", show, at_once=100)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["127.0.0.1:7480"]))
