# SPDX-License-Identifier: Apache-2.0
"""What gate.py counts of the services: a request of a host's, from its send to its receipt of the answer.

The host's share, a send and a recv_into, is counted with it; what the kernel does, and waiting, is not.
"""

from __future__ import annotations

import atexit
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

RING = 69632
RECORDS = 10


def paths() -> dict[str, Callable[[int], None]]:
    from hvring.ic.frame import Frame, MessageType
    from hvring.ic.kvp import KvpEnumerate, KvpGet, KvpSet

    asked = {
        "KVP: a GET": [KvpGet(0, f"key.{n}") for n in range(RECORDS)],
        "KVP: a SET": [KvpSet(0, f"key.{n}", f"new value {n}") for n in range(RECORDS)],
        "KVP: a step of ENUMERATE": [KvpEnumerate(0, n) for n in range(RECORDS)],
    }
    return {
        name: answered([Frame(MessageType.KVP, each.encode()).encode() for each in bodies])
        for name, bodies in asked.items()
    }


def answered(messages: Sequence[bytes]) -> Callable[[int], None]:
    """By the service of a pool of ten short records, one of the messages after the other."""
    from hvring import Channel
    from hvring.agent.responder import Responder
    from hvring.channel import EventfdDoorbell
    from hvring.guest.pace import Pace
    from hvring.guest.pools import KEY_SIZE, RECORD_SIZE, PoolStore
    from hvring.services import Kvp

    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    pool = Path(folder.name) / ".kvp_pool_0"
    value = b"value".ljust(RECORD_SIZE - KEY_SIZE, b"\0")
    pool.write_bytes(b"".join(f"key.{n}".encode().ljust(KEY_SIZE, b"\0") + value for n in range(RECORDS)))
    os.utime(pool, (0, 0))  # so it is known from the first look on
    store = PoolStore(folder.name)
    store._pace = Pace(lambda: 0.0)  # under callgrind every change is slow, and no rest is to be counted
    memory = mmap.mmap(-1, 2 * RING)
    bells = [os.eventfd(0) for _ in range(4)]
    guest = Channel(memory, ring_size=RING, tx_offset=0, rx_offset=RING, doorbell=EventfdDoorbell(*bells[:2]))
    host = Channel(memory, ring_size=RING, tx_offset=RING, rx_offset=0, doorbell=EventfdDoorbell(*bells[2:]))
    host.mask()
    responder = Responder(guest, Kvp(store))
    answer = bytearray(4096)

    def loop(n: int) -> None:
        send, respond, receive, buffer = host.send, responder.respond, host.recv_into, answer
        for message in islice(cycle(messages), n):
            send(message)
            respond(1)
            receive(buffer)
        if any(answer[20:24]) or receive(buffer) is not None:
            raise RuntimeError("these are no answers")

    return loop
