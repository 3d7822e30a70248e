"""Works on the items of a queue, over the stream of QueueService.Consume, with threads.

    work([stub], "mail", lambda item: send(item.payload, item.fencing_token), threads=4)

An item is done when the function returns, and comes again when it raises. The daemon extends the leases of what is in flight.
When an item is lost, `item.lost` is set: a function that takes long looks at it now and then, and stops. An item is handed out
at least once, and may come again although its work was done; the fencing token lets what the work changes refuse the one before.

docs/clients.md says how `majority.v1` is made from the .proto files.
"""

import concurrent.futures
import queue
import sys
import threading
import time

import grpc
from majority.v1 import queue_pb2, queue_pb2_grpc

# The daemon is not there, or goes away, or too much is asked of it.
REPEATABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class Item:
    """What the function gets."""

    def __init__(self, reserved):
        self.id, self.payload, self.attempt = reserved.id, reserved.payload, reserved.attempt
        self.attributes, self.fencing_token = dict(reserved.attributes), reserved.fencing_token
        self.lease = queue_pb2.ItemLease(id=reserved.id, lease_id=reserved.lease_id)
        self.lost = threading.Event()


def work(stubs, name, function, *, threads=1, stopping=None):
    """Until `stopping`, a threading.Event, is set; what is in flight then is brought to an end."""
    stopping = stopping or threading.Event()
    turn = 0
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        while not stopping.is_set():
            try:
                work_on_one_stream(stubs[turn % len(stubs)], name, function, pool, threads, stopping)
            except grpc.RpcError as error:
                if error.code() not in REPEATABLE:
                    raise
                # What was in flight runs out and comes again, unless its ack gets through below.
                turn += 1
                time.sleep(0.2)


def work_on_one_stream(stub, name, function, pool, threads, stopping):
    commands = queue.SimpleQueue()
    commands.put(queue_pb2.ConsumeRequest(open={"queue": name, "max_in_flight": threads}))
    # None closes our side: no more items come, and the stream ends with the answer to the last ack.
    events = stub.Consume(iter(commands.get, None))
    ended = threading.Event()
    threading.Thread(target=close_when, args=(stopping, ended, commands), daemon=True).start()
    in_flight = {}
    try:
        for event in events:
            kind = event.WhichOneof("event")
            if kind == "item":
                item = in_flight[event.item.lease_id] = Item(event.item)
                pool.submit(work_on, stub, name, function, item, commands, ended)
            elif kind == "settled":
                in_flight.pop(event.settled.lease.lease_id, None)
            elif kind == "lost":
                item = in_flight.pop(event.lost.lease.lease_id, None)
                if item is not None:
                    item.lost.set()
    finally:
        ended.set()
        for item in in_flight.values():
            item.lost.set()


def close_when(stopping, ended, commands):
    while not stopping.wait(0.2) and not ended.is_set():
        pass
    commands.put(None)


def work_on(stub, name, function, item, commands, ended):
    nack = None
    try:
        function(item)
    except Exception as error:  # noqa: BLE001: whatever it is, the item comes again
        nack = queue_pb2.ItemNack(id=item.id, lease_id=item.lease.lease_id, reason=repr(error)[:1000])
    if not ended.is_set():
        said = {"nack": nack} if nack else {"ack": item.lease}
        commands.put(queue_pb2.ConsumeRequest(**said))
        return
    # The stream is gone, but the lease lasts for a while, and any daemon takes the answer.
    try:
        if nack:
            stub.Nack(queue_pb2.NackRequest(queue=name, items=[nack]), timeout=5)
        else:
            stub.Ack(queue_pb2.AckRequest(queue=name, leases=[item.lease]), timeout=5)
    except grpc.RpcError:
        # It comes again.
        pass


def main(addresses):
    stubs = [queue_pb2_grpc.QueueServiceStub(grpc.insecure_channel(address)) for address in addresses]
    work(stubs, "example", lambda item: print(item.id, item.payload, flush=True), threads=4)


if __name__ == "__main__":
    main(sys.argv[1:] or ["127.0.0.1:7480"])
