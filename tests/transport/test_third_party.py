# SPDX-License-Identifier: Apache-2.0
"""Both ends of the virtual endpoint against a stranger: plain Python, blocking eventfds, no seals but the guest's own.

The stranger knows the endpoint's paragraph and PROTOCOL §2 and nothing of hvring.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hvring.host.testing import running_host

HEARTBEAT = ("57164f39-9115-4e78-ab55-382f3bd5422d", "fd149e91-82e0-4a7d-afa6-2a4166cbd7c0")
DATA = 4096


class Stranger:
    """Either end, over the memory of two rings of ``size`` bytes."""

    def __init__(self, memory: mmap.mmap, size: int, out: int, into: int, ring: int, wake: int) -> None:
        self.memory, self.size, self.out, self.into, self.ring, self.wake = (
            memory,
            size,
            out,
            into,
            ring,
            wake,
        )

        self.words = memoryview(memory).cast("I")  # one store a word; struct.pack_into stores zero first

    def u32(self, at: int) -> int:
        return self.words[at // 4]

    def send(self, payload: bytes, transaction_id: int) -> None:
        payload += bytes(-len(payload) % 8)
        old = self.u32(self.out)
        packet = struct.pack("<HHHHQ", 6, 2, 2 + len(payload) // 8, 0, transaction_id) + payload
        packet += struct.pack("<II", 0, old)
        for i, byte in enumerate(packet):
            self.memory[self.out + DATA + (old + i) % (self.size - DATA)] = byte
        self.words[self.out // 4] = (old + len(packet)) % (self.size - DATA)
        if self.u32(self.out + 8) == 0 and self.u32(self.out + 4) == old:
            os.write(self.ring, struct.pack("<Q", 1))

    def receive(self) -> tuple[int, bytes]:
        """Blocks; the mask stays 0 all the time."""
        got = self.receive_or_end(self.wake)
        assert got is not None
        return got

    def receive_or_end(self, connection: socket.socket | int) -> tuple[int, bytes] | None:
        """None: the connection has ended."""
        while (read := self.u32(self.into + 4)) == self.u32(self.into):
            ready = select.select([self.wake, connection], [], [], 20)[0]
            assert ready, "nothing came"
            if self.wake not in ready:
                return None
            os.read(self.wake, 8)
        raw = bytes(self.memory[self.into + DATA : self.into + self.size])
        raw = raw[read:] + raw[:read]
        kind, offset8, len8, _flags, transaction_id = struct.unpack_from("<HHHHQ", raw)
        assert kind == 6
        self.words[self.into // 4 + 1] = (read + len8 * 8 + 8) % (self.size - DATA)
        return transaction_id, raw[offset8 * 8 : len8 * 8]


def message(kind: int, body: bytes) -> bytes:
    version = (0, 0, kind, 0, 0) if kind == 0 else (3, 0, kind, 3, 0)
    header = struct.pack("<HHHHHHIBBH", *version, len(body), 0, 0, 3, 0)
    return struct.pack("<II", 1, len(header) + len(body)) + header + body


NEGOTIATE = message(0, struct.pack("<HHI8H", 2, 2, 0, 1, 0, 3, 0, 1, 0, 3, 0))


@contextmanager
def strangers_host(path: str, size: int) -> Iterator[Stranger]:
    """One heartbeat channel to whoever attaches."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        listening.listen(1)
        listening.settimeout(20)
        guest = subprocess.Popen(
            [sys.executable, "-m", "hvring", "run", "heartbeat", "--virtual", path, "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            connection, _ = listening.accept()
            with connection:
                assert json.loads(connection.recv(4096))["open"] in ("heartbeat", HEARTBEAT[0])
                memory = os.memfd_create("stranger", os.MFD_ALLOW_SEALING)
                os.ftruncate(memory, 2 * size)
                to_host, to_guest = os.eventfd(0), os.eventfd(0)
                mapped = mmap.mmap(memory, 2 * size)
                answer = {"hvring": 1, "class": HEARTBEAT[0], "instance": HEARTBEAT[1], "ring_size": size}
                rights = array.array("i", [memory, to_host, to_guest])
                connection.sendmsg(
                    [json.dumps(answer).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                )
                yield Stranger(mapped, size, out=size, into=0, ring=to_guest, wake=to_host)
        finally:
            guest.terminate()
            guest.communicate(timeout=20)
            assert guest.returncode == 0


@pytest.mark.parametrize("size", [8192, 2 << 20])
def test_our_agent_serves_a_strangers_host(size: int, tmp_path) -> None:
    with strangers_host(str(tmp_path / "s"), size) as host:
        host.send(NEGOTIATE, 77)
        transaction_id, answer = host.receive()
        assert transaction_id == 77
        assert answer[25] == 5
        assert struct.unpack_from("<HH4x4H", answer, 28) == (1, 1, 3, 0, 3, 0)
        for n in range(300):  # around the small ring several times
            host.send(message(1, struct.pack("<Q32x", n)), n)
            transaction_id, answer = host.receive()
            assert (transaction_id, struct.unpack_from("<Q", answer, 28)[0]) == (n, n + 1)


def test_our_host_talks_to_a_strangers_guest(tmp_path) -> None:
    path = str(tmp_path / "s")
    with running_host(path) as host, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(path)
        connection.send(b'{"hvring": 1, "open": "heartbeat"}')
        data, rights, _, _ = connection.recvmsg(4096, 4096)
        offer = json.loads(data)
        assert (offer["class"], offer["instance"]) == HEARTBEAT
        descriptors = array.array("i", rights[0][2])
        size = offer["ring_size"]
        guest = Stranger(
            mmap.mmap(descriptors[0], 2 * size),
            size,
            out=0,
            into=size,
            ring=descriptors[1],
            wake=descriptors[2],
        )

        def serve() -> None:
            while (asked := guest.receive_or_end(connection)) is not None:
                transaction_id, request = asked
                answer = bytearray(request)
                answer[25] = 5
                if struct.unpack_from("<H", answer, 12)[0] == 0:
                    answer[18:20] = struct.pack("<H", 16)
                    answer[28:32] = struct.pack("<HH", 1, 1)
                    answer[36:44] = struct.pack("<4H", 3, 0, 3, 0)
                else:
                    sequence = struct.unpack_from("<Q", answer, 28)[0]
                    struct.pack_into("<Q", answer, 28, sequence + 1)
                guest.send(bytes(answer), transaction_id)

        thread = threading.Thread(target=serve)
        thread.start()
        host.do(host.wait_ready("heartbeat", timeout=20))
        for _ in range(2):
            host.do(host.heartbeat.beat())
        assert host.violations == []
        host.do(host.set_offered("heartbeat", False))
        thread.join()
        for descriptor in descriptors:
            os.close(descriptor)
