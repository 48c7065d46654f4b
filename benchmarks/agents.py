# SPDX-License-Identifier: Apache-2.0
"""`hvring run` as it is, in a process of its own, under a host that costs next to nothing: one blocking thread."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType

from processors import GUEST, favoured

from hvring import Channel
from hvring.channel import EventfdDoorbell
from hvring.ic.frame import Frame, MessageType, Version
from hvring.ic.negotiate import NegotiateRequest
from hvring.transport.endpoint import MAX_DATAGRAM, OpenRequest
from hvring.transport.listener import Listener
from hvring.transport.virtual import Offer
from hvring.vmbus import BY_NAME

ROOT = Path(__file__).parents[1]
TIMEOUT = 30
FRAMEWORK = Version(3, 0)
VERSIONS = {
    "shutdown": Version(3, 2),
    "timesync": Version(4, 0),
    "heartbeat": Version(3, 0),
    "kvp": Version(4, 0),
    "vss": Version(5, 0),
    "fcopy": Version(1, 1),
}


def command(*words: object) -> list[str]:
    """An hvring command over this very tree."""
    return [sys.executable, "-m", "hvring", *map(str, words)]


def environment() -> dict[str, str]:
    """With byte code that is kept, as it is of what is installed: else a start is mostly the compiler's."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(ROOT)}


class RunningAgent:
    """`with RunningAgent(folder, "kvp") as agent: agent.ask("kvp", payload)`; `folder` gets the socket and the pools.

    `program`: a script to run in place of `hvring run`; it gets the socket's path, the services and `words`.
    `as_guest`: on the processor for guests, undisturbed (processors.py).

    `started` and `answered` are of the monotonic clock: the process began, and the last of its services agreed to a
    version.
    """

    def __init__(
        self,
        folder: Path,
        *services: str,
        words: tuple[object, ...] = (),
        program: Path | None = None,
        as_guest: bool = False,
    ) -> None:
        self.pools = folder / "pools"
        self.channels: dict[str, Channel] = {}
        self.offers: dict[str, tuple[Offer, socket.socket]] = {}  # and the guest's connection
        path = folder / "host.sock"
        with Listener(path, socket.SOCK_SEQPACKET) as listener:
            listener.socket.setblocking(True)
            listener.socket.settimeout(TIMEOUT)
            self.started = time.monotonic()
            usual = command("run", *services, "--virtual", path, "--pool-dir", self.pools, *words)
            with favoured(GUEST) if as_guest else nullcontext():
                self.process = subprocess.Popen(
                    usual
                    if program is None
                    else [sys.executable, program, path, *services, *map(str, words)],
                    env=environment(),
                    cwd=folder,
                    stdout=subprocess.DEVNULL,
                )
            try:
                for _ in services:
                    self._open(listener.socket)
                for name in services:
                    self._negotiate(name)
            except BaseException:
                self.close()
                raise
        self.answered = time.monotonic()

    def _open(self, listening: socket.socket) -> None:
        connection, _ = listening.accept()
        connection.settimeout(TIMEOUT)
        name = OpenRequest.decode(connection.recv(MAX_DATAGRAM)).service
        offer = Offer(BY_NAME[name])
        self.offers[name] = offer, connection
        self.channels[name] = Channel(
            offer.memory,
            ring_size=offer.ring_size,
            tx_offset=offer.ring_size,
            rx_offset=0,
            doorbell=EventfdDoorbell(os.dup(offer.host_event), os.dup(offer.guest_event)),
            lifeline=os.dup(connection.fileno()),
            name=name,
        )
        offer.answer(connection)

    def _negotiate(self, name: str) -> None:
        wanted = NegotiateRequest((FRAMEWORK,), (VERSIONS[name],)).encode()
        answer = Frame.decode(self.ask(name, Frame(MessageType.NEGOTIATE, wanted).encode()))
        if answer.status:
            raise RuntimeError(f"{name}: the agent refused {VERSIONS[name]}")

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, name: str, payload: bytes) -> bytes:
        """One request and its answer."""
        channel = self.channels[name]
        channel.send(payload)
        while (packet := channel.recv()) is None:
            if not channel.wait(TIMEOUT):
                raise RuntimeError(f"{name}: no answer")
        return packet.payload

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT)
        finally:
            for channel in self.channels.values():
                channel.close()
            for offer, connection in self.offers.values():
                offer.close()
                connection.close()

    def __enter__(self) -> RunningAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
