# SPDX-License-Identifier: Apache-2.0
"""What gate.py counts: run under callgrind, which cuts its totals wherever getppid() is called.

Each path is a function of n that passes n packets with the fewest possible instructions of its own around them.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections.abc import Callable
from itertools import repeat

COUNT = 2048
BATCH = 64
SIZE = 64
SLOWER = "send + recv_into, made slower"  # the gate must find it worse than the path without the last words


def paths() -> dict[str, Callable[[int], None]]:
    import gate_chunks
    import gate_services

    from hvring import Channel
    from hvring.channel import EventfdDoorbell
    from hvring.ring import RingConsumer, RingProducer

    memory = bytearray(4096 + 131072)
    producer, consumer = RingProducer(memory), RingConsumer(memory)

    def pair() -> tuple[Channel, Channel]:
        """The guest's end and the host's, whose doorbells nobody hears."""
        shared = mmap.mmap(-1, 2 * 69632)
        bells = [os.eventfd(0) for _ in range(4)]
        guest = Channel(
            shared, ring_size=69632, tx_offset=0, rx_offset=69632, doorbell=EventfdDoorbell(*bells[:2])
        )
        host = Channel(
            shared, ring_size=69632, tx_offset=69632, rx_offset=0, doorbell=EventfdDoorbell(*bells[2:])
        )
        host.mask()
        return guest, host

    guest, host = pair()
    payload, target = bytes(SIZE), bytearray(SIZE)
    payloads, many, rows = [payload] * BATCH, bytearray(SIZE * BATCH), bytearray(24 * BATCH)
    table = b"".join(struct.pack("<IIHHIQ", n * SIZE, SIZE, 6, 0, 0, n) for n in range(BATCH))

    def into(end: RingProducer | Channel, other: RingConsumer | Channel) -> Callable[[int], None]:
        def loop(n: int) -> None:
            send, receive, data, buffer = end.send, other.recv_into, payload, target
            for _ in repeat(None, n):
                send(data)
                receive(buffer)

        return loop

    def to_object(end: RingProducer | Channel, take: Callable[[], object]) -> Callable[[int], None]:
        def loop(n: int) -> None:
            send, receive, data = end.send, take, payload
            for _ in repeat(None, n):
                send(data)
                receive()

        return loop

    def empty(n: int) -> None:
        for _ in repeat(None, n):
            pass

    def two_calls(n: int) -> None:
        send, receive, data, buffer = [].count, [].count, payload, target
        for _ in repeat(None, n):
            send(data)
            receive(buffer)

    def slower(n: int) -> None:
        send, receive, data, buffer = producer.send, consumer.recv_into, payload, target
        for _ in repeat(None, n):
            send(data)
            more = n  # noqa: F841
            receive(buffer)

    def keywords(n: int) -> None:
        send, receive, data, buffer = producer.send, consumer.recv_into, payload, target
        for _ in repeat(None, n):
            send(data, transaction_id=1)
            receive(buffer)

    def arrays(n: int) -> None:
        send, receive = producer.send_batch, consumer.recv_batch
        for _ in repeat(None, n // BATCH):
            send(many, table)
            receive(many, rows)

    def lists(n: int) -> None:
        send, receive = producer.send_many, consumer.recv_payloads
        for _ in repeat(None, n // BATCH):
            send(payloads)
            receive(BATCH)

    def packets(n: int) -> None:
        send, receive = producer.send_many, consumer.recv_many
        for _ in repeat(None, n // BATCH):
            send(payloads)
            receive(BATCH)

    def nothing_there(n: int) -> None:
        receive, buffer = consumer.recv_into, target
        for _ in repeat(None, n):
            receive(buffer)

    return {
        "empty loop": empty,
        "two empty calls": two_calls,
        "send + recv_into": into(producer, consumer),
        "send + recv_bytes": to_object(producer, consumer.recv_bytes),
        "send + recv to a Packet": to_object(producer, consumer.recv),
        "send with keywords + recv_into": keywords,
        "Channel.send + recv_into": into(guest, host),
        "Channel.send + recv to a Packet": to_object(guest, host.recv),
        "send_batch + recv_batch of 64": arrays,
        "send_many + recv_payloads of 64": lists,
        "send_many + recv_many of 64": packets,
        "recv_into on an empty ring": nothing_there,
        SLOWER: slower,
        **gate_chunks.paths(pair),
        **gate_services.paths(),
    }


def c_pairs(library: str) -> Callable[[int], None]:
    """A C peer's loop, for comparison; no baseline, since it is not ours to change."""
    import ctypes

    memory = ctypes.create_string_buffer(131072 + 3 * 4096)
    address = (ctypes.addressof(memory) + 4095) & ~4095
    ring, data = ctypes.c_void_p(address), ctypes.create_string_buffer(SIZE + 64)
    peer = ctypes.CDLL(library)

    def loop(n: int) -> None:
        peer.bench_pairs(ring, len(memory) - 8192, data, data, SIZE, ctypes.c_uint64(n))

    return loop


def main(root: str, *libraries: str) -> None:
    sys.path.insert(0, root)
    # half-full pools of every size: else the allocator may be at a pool's edge, and take and give it back each time
    ballast = [bytes(size) for size in range(0, 480, 8) for _ in range(128)]
    del ballast[::2]
    for path in [*paths().values(), *map(c_pairs, libraries)]:
        path(4 * BATCH)  # warm: specialised byte code, free lists
        os.getppid()
        path(COUNT)
        os.getppid()


if __name__ == "__main__":
    main(*sys.argv[1:])
