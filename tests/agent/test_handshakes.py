# SPDX-License-Identifier: Apache-2.0
"""No answer to a handshake ends a service: every one is tried again, and the first good one is served."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hvring.agent import Agent
from hvring.events import EventKind
from hvring.host import VirtualHost
from hvring.services import Heartbeat
from hvring.transport.virtual import connect_async
from hvring.vmbus import BY_NAME

SIZE = 65536
IDS = BY_NAME["heartbeat"]
GOOD = {
    "hvring": 1,
    "class": IDS.class_guid,
    "instance": IDS.instance_guid,
    "ring_size": SIZE,
}

Answer = tuple[bytes, Callable[[Path], list[int]]]


def memory(size: int = 2 * SIZE, write_index: int = 0) -> int:
    made = os.memfd_create("ring", os.MFD_ALLOW_SEALING)
    os.ftruncate(made, size)
    os.pwrite(made, struct.pack("<I", write_index), 0)
    return made


def event() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK)


def file(directory: Path) -> int:
    made = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(made, 2 * SIZE)
    return made


def pipes() -> list[int]:
    return list(os.pipe())


def twice(made: int) -> list[int]:
    return [made, os.dup(made)]


def read_only(made: int) -> int:
    again = os.open(f"/proc/self/fd/{made}", os.O_RDONLY)
    os.close(made)
    return again


def none(_: Path) -> list[int]:
    return []


def fields(**changed: object) -> bytes:
    return json.dumps({**GOOD, **changed}).encode()


def with_three(data: bytes) -> Answer:
    return data, lambda _: [memory(), event(), event()]


ANSWERS: dict[str, Answer] = {
    "garbage": (b"\xff\xfe garbage", none),
    "no datagram": (b"", none),
    "no object": (b"[1]", none),
    "deep JSON": (b"[" * 4000, none),
    "a number of thousands of digits": (b'{"hvring":1,"ring_size":' + b"9" * 3900 + b"}", none),
    "longer than the rules allow": (b"x" * 5000, none),
    "another version": with_three(fields(hvring=2)),
    "true is no version": with_three(fields(hvring=True)),
    "no descriptors": (fields(), none),
    "two descriptors": (fields(), lambda _: [memory(), event()]),
    "five descriptors": (fields(), lambda _: [memory(), event(), event(), event(), event()]),
    "memory of one ring": (fields(), lambda _: [memory(SIZE), event(), event()]),
    "a file": (fields(), lambda d: [file(d), event(), event()]),
    "pipes": (fields(), lambda _: [memory(), *pipes()]),
    "an index out of the ring": (fields(), lambda _: [memory(write_index=0xFFFFFFF8), event(), event()]),
    "another class": with_three(fields(**{"class": BY_NAME["kvp"].class_guid})),
    "a class that is a number": with_three(fields(**{"class": 7})),
    "no instance": with_three(fields(instance=None)),
    "rings of no bytes": with_three(fields(ring_size=0)),
    "rings of a GiB": with_three(fields(ring_size=1 << 30)),
    "rings of a negative size": with_three(fields(ring_size=-8192)),
    "rings of half a byte": with_three(fields(ring_size=0.5)),
    "not a number": (b'{"hvring":1,"ring_size":NaN,"class":"x","instance":"y"}', none),
    "half a surrogate pair": (b'{"hvring":1,"error":"\\ud800\\u001b[31m"}', none),
    "a refusal for good": (
        json.dumps({"hvring": 1, "error": "no\n\x1b[31mway", "retry": False}).encode(),
        none,
    ),
    "memory that cannot be written": (fields(), lambda _: [read_only(memory()), event(), event()]),
    "a semaphore": (
        fields(),
        lambda _: [memory(), event(), os.eventfd(1, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)],
    ),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_no_answer_to_a_handshake_ends_a_service(what: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hvring.agent.service_loop.LAST_PAUSE", 0.0)
    monkeypatch.setattr("hvring.agent.service_loop.FIRST_PAUSE", 0.0)
    data, make = ANSWERS[what]

    async def lie(listener: socket.socket, times: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(times):
            connection, _ = await loop.sock_accept(listener)
            with connection:
                await loop.sock_recv(connection, 4096)
                descriptors = make(tmp_path)
                socket.send_fds(connection, [data], descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)

    async def main() -> None:
        events = []
        path = tmp_path / "sock"
        opener = partial(connect_async, path, timeout=None, wait=True)
        async with asyncio.timeout(60):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.setblocking(False)
                listener.bind(str(path))
                listener.listen()
                agent = Agent([Heartbeat()], opener, on_event=events.append)
                await agent.start()
                try:
                    await lie(listener, 3)
                finally:
                    listener.close()
                path.unlink()
                async with VirtualHost(path, ["heartbeat"]) as host:
                    await host.wait_ready("heartbeat")
                    await host.heartbeat.beat()
                await agent.stop()
        assert EventKind.STOPPED not in {event.kind for event in events}
        assert all(text.isprintable() for text in map(str, events))

    asyncio.run(main())
