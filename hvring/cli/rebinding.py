# SPDX-License-Identifier: Apache-2.0
"""Binding devices beside an event loop, and giving back what was bound."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from hvring.daemon.signals import held_back
from hvring.errors import HvringError
from hvring.transport.binding import Binder
from hvring.transport.sysfs import UIO_DRIVER

_LAST_BINDING: Final = 5.0  # seconds that the end waits for a binding which is under way

log = logging.getLogger("hvring.cli")


@contextmanager
def given_back(binder: Binder) -> Iterator[Rebinding]:
    """Whatever is bound within goes back at the end. No signal that can be held back stops that half-way."""
    before = set(binder.bound())
    rebinding = Rebinding(binder)
    try:
        yield rebinding
    finally:
        with held_back():
            rebinding.finish()
            for instance in set(binder.bound()) - before:
                try:
                    binder.unbind(instance)
                except HvringError as error:
                    log.error("%s", error)


class Rebinding:
    """Binds devices that came back, beside the loop: the kernel may wait for a daemon that does not let one go."""

    def __init__(self, binder: Binder) -> None:
        self._binder = binder
        self._threads: list[threading.Thread] = []

    async def bind(self, name: str) -> None:
        """Raises what Binder.bind does."""
        if self._binder.bus.find(name).driver == UIO_DRIVER:
            return
        loop = asyncio.get_running_loop()
        bound: asyncio.Future[None] = loop.create_future()

        def finish(error: Exception | None) -> None:
            if bound.done():  # nobody waits for it any more
                return
            if error is None:
                bound.set_result(None)
            else:
                bound.set_exception(error)

        def work() -> None:
            result: Exception | None = None
            try:
                self._binder.bind(name)
            except Exception as error:
                result = error
            try:
                loop.call_soon_threadsafe(finish, result)
            except RuntimeError:  # the loop has ended
                pass

        thread = threading.Thread(target=work, name=f"hvring-bind-{name}", daemon=True)
        with held_back():  # the thread inherits that, so that the signals stay with the loop
            try:
                thread.start()
            except RuntimeError as error:  # as many threads as this machine allows: it is tried again
                raise OSError(errno.EAGAIN, f"nothing can be bound now: {error}") from error
            self._threads = [*(t for t in self._threads if t.is_alive()), thread]
        await bound

    def finish(self) -> None:
        """What is still being bound could not be given back; but this does not wait for ever."""
        end = time.monotonic() + _LAST_BINDING
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
