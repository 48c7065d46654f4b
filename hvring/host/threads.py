# SPDX-License-Identifier: Apache-2.0
"""Calls that may never return, as those on a pipe or a dead file system: the host can end all the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from hvring.host.errors import HostError

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads:
    """Runs calls in threads, at most ``most`` at a time; neither the loop nor the interpreter waits for them to end."""

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._running: set[threading.Thread] = set()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``function`` returns or raises, as ``asyncio.to_thread``; HostError when too many did not return."""
        self._running = {thread for thread in self._running if thread.is_alive()}
        if len(self._running) >= self._most:
            raise HostError(f"{self._most} sources do not answer; nothing more is read until one does")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(set_it: Callable[[Any], None], value: object) -> None:
            if not future.done():
                set_it(value)

        def work() -> None:
            # The loop may have ended meanwhile: then there is nobody to tell.
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(settle, future.set_exception, error)
            else:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(settle, future.set_result, result)

        thread = threading.Thread(target=work, name="hvring-host-source", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise HostError(f"nothing can be read: {error}") from error
        self._running.add(thread)
        return await future
