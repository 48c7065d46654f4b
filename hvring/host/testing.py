# SPDX-License-Identifier: Apache-2.0
"""A virtual host for tests that are not asynchronous: it runs in a thread of its own.

@pytest.fixture
def host(tmp_path):
    with running_host(tmp_path / "hv.sock") as host:
        yield host
        assert not host.violations

def test_my_agent(host):
    start_my_agent(host.path)
    host.do(host.wait_ready("kvp"))
    host.do(host.kvp.set("color", "green"))
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any, TypeVar

from hvring.events import Event
from hvring.host.device import Handler
from hvring.host.timing import Timing
from hvring.host.virtual_host import VirtualHost
from hvring.vmbus import SERVICE_NAMES

T = TypeVar("T")


class Threaded(AbstractAsyncContextManager[Any]):
    """Added to a host: its verbs are carried out in its thread, by :meth:`do`."""

    loop: asyncio.AbstractEventLoop

    def do(self, verb: Coroutine[Any, Any, T], timeout: float = 60.0) -> T:
        """The result of a verb, from another thread than the host's; TimeoutError cancels it."""
        future = asyncio.run_coroutine_threadsafe(verb, self.loop)
        try:
            return future.result(timeout)
        finally:
            future.cancel()


class ThreadedHost(VirtualHost, Threaded):
    """A VirtualHost whose verbs are carried out in its thread."""


H = TypeVar("H", bound=Threaded)


@contextmanager
def running_host(
    path: str | os.PathLike[str],
    services: Iterable[str] = SERVICE_NAMES,
    *,
    devices: Mapping[str, Handler] | None = None,
    timing: Timing | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Iterator[ThreadedHost]:
    """Serve at ``path`` in a thread; arguments as for VirtualHost, ``on_event`` is called in that thread.

    Raises EndpointError when the socket cannot be made.
    """
    with in_thread(ThreadedHost(path, services, devices=devices, timing=timing, on_event=on_event)) as host:
        yield host


@contextmanager
def in_thread(host: H) -> Iterator[H]:
    """Enter ``host`` on an event loop in a new thread; leave it, and end the thread, at the end."""
    started = threading.Event()
    failure: list[BaseException] = []

    async def serve() -> None:
        host.loop = asyncio.get_running_loop()
        async with host:
            started.set()
            await stop.wait()

    def work() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failure.append(error)
        finally:
            started.set()

    stop = asyncio.Event()
    thread = threading.Thread(target=work, name="hvring-host")
    thread.start()
    started.wait()
    try:
        if not failure:
            yield host
    finally:
        if not failure:
            with suppress(RuntimeError):  # its loop ended by itself meanwhile
                host.loop.call_soon_threadsafe(stop.set)
        thread.join()
        if failure:
            raise failure[0]
