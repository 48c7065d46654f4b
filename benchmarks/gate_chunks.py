# SPDX-License-Identifier: Apache-2.0
"""What gate.py counts of file copy and heartbeats: a request from one ring, its answer into the other.

The host's side, a send and a receive, is in the numbers.  No process writes the file; all else is as in the agent.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import repeat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvring import Channel

OFFSET = 28 + 40  # of a WRITE's place in the file


class Worker:
    """Takes everything at once."""

    is_open = True

    def ask(self, *what: Any, **how: Any) -> str:
        return ""

    def linger(self) -> None:
        pass

    def give_up(self) -> None:
        pass

    def give_back(self, worker: object) -> None:
        pass


class Receiver:
    """Its copies are those of the agent, over :class:`Worker`."""

    def start(self, directory: str, name: str, **how: Any) -> Any:
        from hvring.guest.copy_under_way import Copy
        from hvring.guest.extents import Extents

        worker: Any = Worker()
        return Copy(f"{directory}/{name}", worker, worker, Extents(), 10.0, 25.0, directory, sync=True)


def paths(pair: Callable[[], tuple[Channel, Channel]]) -> dict[str, Callable[[int], None]]:
    from hvring.agent import Responder
    from hvring.ic.fcopy import CHUNK, StartCopy, WriteChunk
    from hvring.ic.frame import Frame, MessageType
    from hvring.ic.heartbeat import Heartbeat as Beat
    from hvring.services import Fcopy, Heartbeat

    answer = bytearray(16384)

    def chunks() -> Callable[[int], None]:
        guest, host = pair()
        responder = Responder(guest, Fcopy(Receiver()))
        host.send(Frame(MessageType.FCOPY, StartCopy("file", "/folder").encode()).encode())
        responder.respond()
        host.recv_into(answer)
        assert answer[20:24] == bytes(4)
        message = bytearray(Frame(MessageType.FCOPY, WriteChunk(0, bytes(CHUNK)).encode()).encode())
        offsets = iter(range(0, 1 << 40, CHUNK))

        def loop(n: int) -> None:
            send, respond, receive, place = host.send, responder.respond, host.recv_into, struct.pack_into
            for offset in (next(offsets) for _ in range(n)):
                place("<q", message, OFFSET, offset)
                send(message)
                respond()
                receive(answer)
            assert answer[20:24] == bytes(4)

        return loop

    def beats() -> Callable[[int], None]:
        guest, host = pair()
        responder = Responder(guest, Heartbeat())
        message = Frame(MessageType.HEARTBEAT, Beat(1).encode()).encode()

        def loop(n: int) -> None:
            send, respond, receive = host.send, responder.respond, host.recv_into
            for _ in repeat(None, n):
                send(message)
                respond()
                receive(answer)
            assert answer[28] == 2

        return loop

    return {"a chunk of a file, answered": chunks(), "a heartbeat, answered": beats()}
