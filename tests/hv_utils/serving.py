# SPDX-License-Identifier: Apache-2.0
"""hvring behind the model: one service on one channel, or an agent on asyncio."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from hv_utils_model import Device, File, HvUtils
from hv_utils_model.packets import status_of
from replaying import answered

from hvring.agent import Agent
from hvring.agent.message_responder import MessageResponder
from hvring.errors import EffectError
from hvring.events import Event, EventKind
from hvring.pending import Pending
from hvring.transport.utils import UtilsChannel


class Served:
    """``ask`` a request and get the answer that the host got, or None.

    ``by_the_model``: our patience is on the kernel's clock, too.  Not for effects that take real time.
    """

    def __init__(self, kernel: HvUtils, service: Any, *, by_the_model: bool = False) -> None:
        self.kernel = kernel
        self._now = self.now if by_the_model else time.monotonic
        self.service = service
        self.device: Device = kernel[service.name]
        self.events: list[Event] = []
        service.on_event = self.events.append
        self.open()

    def open(self) -> None:
        self.file: File = self.kernel.open(self.service.name)
        self.channel = UtilsChannel(self.file, self.service.name, monotonic=self._now)
        self.responder = MessageResponder(self.channel, self.service, monotonic=self._now)

    def now(self) -> float:
        return self.kernel.clock.now

    def look(self) -> bool:
        """One turn of the responder, which is not over because this machine is slow."""
        return self.responder.respond(seconds=float("inf"))

    def ask(self, request: bytes) -> bytes | None:
        before = len(self.device.answers)
        self.device.host_sends(request)
        answered(self.responder)
        new = self.device.answers[before:]
        assert len(new) <= 1, "one request, one answer"
        return new[0] if new else None

    def status(self, request: bytes) -> int | None:
        answer = self.ask(request)
        return None if answer is None else status_of(answer)

    def statuses(self) -> list[int]:
        return [status_of(answer) for answer in self.device.answers]

    def end(self) -> None:
        """As an agent does when the channel is of no use any more."""
        self.responder.end()
        self.channel.close()


class Work:
    """An effect that takes its time: until ``finish``, or until it is ``cancelled``, which it notices soon."""

    def __init__(self) -> None:
        self.is_done = False
        self.cancelled = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)

    def __del__(self) -> None:
        os.close(self._bell)

    def pending(self, result: Any = None) -> Pending[Any]:
        def resume() -> Any:
            if self.cancelled:
                raise EffectError("it was broken off")
            return result if self.is_done else self.pending(result)

        return Pending(resume, float("inf"), self._bell, self.cancel)

    def finish(self) -> None:
        self.is_done = True
        os.eventfd_write(self._bell, 1)

    def cancel(self) -> None:
        self.cancelled = True
        os.eventfd_write(self._bell, 1)


class Freezer:
    """Freezes nothing; ``log`` says what it would have done."""

    ready = True

    def __init__(self) -> None:
        self.frozen = False
        self.log: list[str] = []
        self.work: Pending[None] | None = None  # what a freeze takes
        self.error: EffectError | None = None  # of the next freeze or thaw

    def freeze(self) -> Pending[None] | None:
        self.log.append("freeze")
        self._fail()
        self.frozen = True
        return self.work

    def thaw(self) -> None:
        self.log.append("thaw")
        self._fail()
        self.frozen = False

    def _fail(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


class Attended:
    """An agent over the model on the running loop, and events and answers to wait for."""

    def __init__(self, kernel: HvUtils, services: list[Any]) -> None:
        self.kernel = kernel
        self.events: list[Event] = []
        self.openings: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self.agent = Agent(services, self._open, on_event=self._tell)
        for device in kernel.devices.values():
            device.on_change = self.changed

    async def _open(self, name: str) -> UtilsChannel:
        """As open_channel_async waits for the node."""
        while True:
            try:
                channel = UtilsChannel(self.kernel.open(name), name)
                self.openings[name] += 1
                return channel
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EBADF):
                    raise
            await self._change()

    async def __aenter__(self) -> Attended:
        await self.agent.start()
        for name in self.agent.services:
            await self.agent.wait_open(name)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.agent.stop()

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()

    async def _change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def changed(self) -> None:
        """Something that only the test knows of, such as a node that is there again."""
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Looked at after each event, and after whatever happens to a device."""
        while not condition():
            await self._change()

    async def ask(self, name: str, request: bytes) -> bytes:
        device = self.kernel[name]
        before = len(device.answers)
        device.host_sends(request)
        await self.until(lambda: len(device.answers) > before)
        return device.answers[before]

    async def status(self, name: str, request: bytes) -> int:
        return status_of(await self.ask(name, request))

    def told(self, name: str, kind: EventKind) -> int:
        return sum(event.service == name and event.kind is kind for event in self.events)

    async def reopened(self, name: str, times: int) -> None:
        """Opened more often than ``times``."""
        await self.until(lambda: self.openings[name] > times)
        await self.agent.wait_open(name)


def run(work: Coroutine[Any, Any, None]) -> None:
    """In a loop of its own, and not for ever."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work

    asyncio.run(bounded())
