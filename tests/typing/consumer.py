# SPDX-License-Identifier: Apache-2.0
"""What an embedder writes, under the strictest rules of mypy; never run."""

from __future__ import annotations

from functools import partial

from hvring import Agent, Channel, serve
from hvring.agent import Effects, Opener, Responder, ServiceChannel, Settings, VssSettings, standard_services
from hvring.events import Event, EventKind
from hvring.guest.power import RehearsedPower
from hvring.ic import Heartbeat as Beat
from hvring.services import Heartbeat, IntegrationService, Response, Service, Shutdown
from hvring.transport import uio, utils, virtual, ways


def hear(event: Event) -> None:
    if event.kind is EventKind.FAILED:
        print(event)


def agents(path: str) -> list[Agent]:
    opener: Opener = partial(virtual.connect_async, path, timeout=None)
    services: list[Service] = standard_services(
        Settings(vss=VssSettings(exclude=["/mnt/*"])), effects=Effects()
    )
    return [
        Agent([Shutdown(RehearsedPower()), Heartbeat()], opener, on_event=hear),
        Agent([Shutdown(RehearsedPower()), Heartbeat()], uio.open_channel_async),
        Agent(services, utils.open_channel_async),
        Agent(services, partial(ways.open_channel_async, via=ways.Via.AUTO, wait=True)),
        Agent(services, partial(virtual.connect_async, path, wait=True)),
    ]


class Recording:
    """A channel of an embedder's own, by what serving needs of one."""

    def __init__(self, below: Channel) -> None:
        self._below = below
        self.sent: list[bytes] = []

    @property
    def closed(self) -> bool:
        return self._below.closed

    @property
    def recheck_every(self) -> float:
        return self._below.recheck_every

    @property
    def wants_room(self) -> bool:
        return self._below.wants_room

    def send(self, payload: bytes, *, transaction_id: int) -> bool:
        self.sent.append(payload)
        return self._below.send(payload, transaction_id=transaction_id)

    def want_room(self, length: int) -> bool:
        return self._below.want_room(length)

    def recv(self) -> Packet | None:
        packet = self._below.recv()
        return None if packet is None else Packet(packet.payload, packet.transaction_id)

    def wait(self, timeout: float | None = None) -> bool:
        return self._below.wait(timeout)

    def arm(self) -> int:
        return self._below.arm()

    def mask(self) -> None:
        self._below.mask()

    def recheck(self) -> None:
        self._below.recheck()

    def fileno(self) -> int:
        return self._below.fileno()

    def close(self) -> None:
        self._below.close()

    def stats(self) -> dict[str, int]:
        return self._below.stats()


class Packet:
    """A packet of an embedder's own."""

    def __init__(self, payload: bytes, transaction_id: int) -> None:
        self.payload = payload
        self.transaction_id = transaction_id


class Louder(Heartbeat):
    """A service of an embedder's own on top of one of ours."""

    def handle(self, message: Beat) -> Response:
        return super().handle(message)


def record(channel: Channel) -> None:
    service: IntegrationService[Beat] = Louder()
    mine: ServiceChannel = Recording(channel)
    Responder(mine, service).respond()
    serve(service, mine)
    serve(service, channel)
