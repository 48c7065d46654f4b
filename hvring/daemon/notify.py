# SPDX-License-Identifier: Apache-2.0
"""The service manager that started this process, if one did: sd_notify(3) and its watchdog, without a library."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import Final

from hvring.agent.agent import Agent
from hvring.events import Event, printable

_DIGITS: Final = 20  # of a number of 64 bits
_NAMES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """Hears that this process is ready, reads its settings anew, stops, and that its loop turns.

    Without one all of this does nothing.  Nothing here waits or raises: a manager that does not read is not told.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Takes the manager's variables out of ``environment``: they are not for programs that are started here."""
        path, microseconds, pid = (environment.pop(name, "") for name in _NAMES)
        self._address = f"\0{path[1:]}" if path.startswith("@") else path if path.startswith("/") else None
        self._socket: socket.socket | None = None
        self._status = ""
        self._look: Callable[[], object] | None = None
        self.watchdog = 0.0  #: seconds between two signs of life; 0: nobody asks for any
        if (
            self._address
            and pid in ("", str(os.getpid()))
            and microseconds.isascii()
            and microseconds.isdigit()
            and len(microseconds) <= _DIGITS
        ):
            self.watchdog = int(microseconds) / 2e6

    @contextmanager
    def told_of(self, agent: Agent, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """In the block: once the loop turns it is ready, then how ``agent`` stands; at its end that nothing is served.

        The loop says that it turns, if the manager wants that.  One that stalls says nothing, and is killed.
        """
        if self._address is None:
            yield
            return
        timer: asyncio.TimerHandle | None = None

        def beat() -> None:
            nonlocal timer
            self._send("WATCHDOG=1")
            timer = loop.call_later(self.watchdog, beat)

        if self.watchdog:
            beat()
        self._look = partial(loop.call_soon, self._say, agent)  # after what the event is about has happened
        begin = loop.call_soon(self.ready, agent)
        try:
            yield
        finally:
            self._look = None
            begin.cancel()
            if timer is not None:
                timer.cancel()
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def ready(self, agent: Agent) -> None:
        """At the start, and when the settings were read anew."""
        self._status = _status(agent)
        self._send(f"READY=1\nSTATUS={self._status}")

    def heard(self, _: Event) -> None:
        """Something has happened to the agent."""
        if self._look is not None:
            self._look()

    def reloading(self) -> None:
        """From here to :meth:`ready` the settings are read anew."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """What was begun is brought to its end, and then this process ends."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def _say(self, agent: Agent) -> None:
        if self._look is not None and (status := _status(agent)) != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def _send(self, words: str) -> None:
        if self._address is None:
            return
        with contextlib.suppress(OSError):
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            # Not connected: the manager may be another one after an upgrade of it, at the same address.
            self._socket.sendto(words.encode("utf-8", "replace"), socket.MSG_DONTWAIT, self._address)


def _status(agent: Agent) -> str:
    """One line for people."""
    if agent.quiet:
        return "file systems are frozen for a backup"
    groups: dict[str, list[str]] = {"serving": [], "waiting for": [], "not serving": []}
    for name, facts in agent.stats().items():
        groups["serving" if facts["open"] else "not serving" if facts["stopped"] else "waiting for"].append(
            name
        )
    said = [f"{what} {', '.join(names)}" for what, names in groups.items() if names]
    return printable("; ".join(said) or "serving nothing")
