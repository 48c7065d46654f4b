# SPDX-License-Identifier: Apache-2.0
"""The host in rounds of chaos: backups in every order, channels taken back, THAWs that are late or never come.

It tells the round where a backup is (``b``: FREEZE is sent, ``f``: it is answered OK, ``t``: THAW is sent, or the
channel is taken back, ``d``: it wants no more), and what the guest has said that is not so: ``L``: THAW is answered OK
and something is frozen; ``W``: THAW is answered OK and something was not frozen any more before it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import random
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from hvring.errors import MessageError
from hvring.host import Faults, HostError, NoAnswerError, Timing, VirtualHost
from hvring.host.link import Packet
from hvring.ic import Frame, MessageType, Version, VssOperation, VssRequest

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
NOT_FROZEN = (errno.EINVAL, errno.EOPNOTSUPP)
PATIENCE = 300.0  # whoever is killed is noticed by its channel: no answer of a guest is ever given up
TIMING = Timing(
    answer=PATIENCE,
    negotiation=PATIENCE,
    freeze=PATIENCE,
    heartbeat_interval=PATIENCE,
    heartbeat_latency=PATIENCE,
)
#: Requests that a guest finds in its ring at once.
IN_A_ROW = (("FREEZE", "THAW"), ("FREEZE", "FREEZE", "THAW"), ("THAW", "FREEZE"), ("FREEZE", "THAW") * 2)


def ioctl(mount: int, request: int) -> int:
    """0 or an errno."""
    try:
        fcntl.ioctl(mount, request, 0)
    except OSError as problem:
        return problem.errno or errno.EIO
    return 0


def thaw_all(mounts: list[int]) -> list[int]:
    """Indices of those that were frozen."""
    return [index for index, mount in enumerate(mounts) if ioctl(mount, FITHAW) not in NOT_FROZEN]


def holds(mounts: list[int]) -> bool:
    """Whether all are frozen that can be.  One that is not is frozen for a moment: there is no other way to know."""
    held = True
    for mount in mounts:
        if ioctl(mount, FIFREEZE) == 0:
            ioctl(mount, FITHAW)  # at once: the next one may lie on it
            held = False
    return held


class PlayedHost:
    """What a host does in one round."""

    def __init__(
        self, host: VirtualHost, order: dict[str, Any], mounts: list[int], tell: Callable[[bytes], object]
    ) -> None:
        self._host = host
        self._script: str = order["script"]
        self._hold: float = order["hold"]
        self._backups: int = order["backups"]
        self._chance = random.Random(order["seed"])
        self._frozen = [mounts[index] for index in order["freezes"]]
        self._mounts = mounts
        self._tell = tell

    async def run(self) -> None:
        taken_back = asyncio.ensure_future(self._take_back()) if self._script == "rescind" else None
        try:
            for _ in range(self._backups):
                await self._host.wait_ready("vss", "heartbeat")
                with contextlib.suppress(HostError, MessageError):
                    await (self._in_a_row() if self._script == "in a row" else self._back_up())
                    await self._host.heartbeat.beat()
        finally:
            if taken_back is not None:
                taken_back.cancel()
                await asyncio.wait([taken_back])
        self._tell(b"d")

    async def _back_up(self) -> None:
        vss = self._host.vss
        if self._chance.random() < 0.3:
            await vss.check()
        self._tell(b"b")
        await vss.freeze()
        self._tell(b"f")
        await asyncio.sleep(self._hold)
        if self._script == "silent":
            return
        was_whole = holds(self._frozen)
        self._tell(b"t")
        await vss.thaw()
        self._thawed()
        if not was_whole:
            self._tell(b"W")

    async def _in_a_row(self) -> None:
        """As verbs would not do it: nothing is waited for."""
        operations = self._chance.choice(IN_A_ROW)
        async with self._host.faults("vss") as raw:
            for number, name in enumerate(operations):
                body = VssRequest(VssOperation[name]).encode()
                frame = Frame(MessageType.VSS, body, version=Version(5, 0))
                raw.send(frame.encode(), transaction_id=number + 1)
            self._tell(b"b")
            for number, name in enumerate(operations):
                answer = Frame.decode((await self._receive(raw)).payload)
                if number == len(operations) - 1 and name == "THAW" and answer.status == 0:
                    self._thawed()
                self._tell(b"f" if name == "FREEZE" else b"t")

    async def _receive(self, raw: Faults) -> Packet:
        session = self._host.sessions["vss"]
        link = session.link
        while True:
            try:
                return await raw.receive(0.2)
            except NoAnswerError:
                if session.link is not link:  # whoever is gone says nothing more
                    raise

    async def _take_back(self) -> None:
        for _ in range(self._chance.choice((1, 1, 2))):
            await asyncio.sleep(self._chance.random() * 0.25)
            self._tell(b"t")
            await self._host.set_offered("vss", False)
            await asyncio.sleep(self._chance.random() * 0.05)
            await self._host.set_offered("vss", True)

    def _thawed(self) -> None:
        """The guest says that all is thawed: is it?"""
        if thaw_all(self._mounts):
            self._tell(b"L")


async def attend(control: socket.socket, path: str, mounts: list[int]) -> None:
    """Rounds as they are ordered, until the other end of ``control`` is gone.

    An order is JSON with a descriptor for what is told; the word ``end`` stops what it has begun, and waits until no
    guest is there.
    """
    loop = asyncio.get_running_loop()
    control.setblocking(False)
    work: asyncio.Task[None] | None = None
    told = -1
    async with VirtualHost(path, ["vss", "heartbeat"], timing=TIMING) as host:
        while True:
            arrived = loop.create_future()
            loop.add_reader(control, arrived.set_result, None)
            await arrived
            loop.remove_reader(control)
            raw, descriptors, _, _ = socket.recv_fds(control, 1 << 12, 1)
            if not raw:
                return
            if raw == b"end":
                if work is not None:
                    work.cancel()
                    await asyncio.wait([work])
                    if not work.cancelled():
                        work.result()
                os.close(told)
                await host.set_offered("vss", True)
                await host.wait_detached("vss")
                await host.wait_detached("heartbeat")
                broken = [str(violation) for violation in host.violations]
                host.violations.clear()
                control.send(json.dumps(broken[:3]).encode())
            else:
                (told,) = descriptors
                played = PlayedHost(host, json.loads(raw), mounts, partial(os.write, told))
                work = asyncio.ensure_future(played.run())
