# SPDX-License-Identifier: Apache-2.0
"""What an administrator's settings have looked at for the heartbeat: units, addresses, files.

Imported only where there is something to look at.  Nothing holds up the loop: a process that may hang reads files.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from typing import Final, TypeVar
from urllib.parse import SplitResult, urlsplit

from hvring.daemon.health import Finding
from hvring.daemon.settings import HealthSettings
from hvring.daemon.watched import Check, Pace
from hvring.errors import EffectError
from hvring.guest.command import Command, find, wait_for
from hvring.guest.power import SYSTEM_BUS
from hvring.ic.heartbeat import ApplicationState
from hvring.pending import Pending, Steps, steps

T = TypeVar("T")

_UNKNOWN, _HEALTHY = ApplicationState.UNKNOWN, ApplicationState.HEALTHY
_STOPPED, _CRITICAL = ApplicationState.STOPPED, ApplicationState.CRITICAL
_STATES: Final = {"active": _HEALTHY, "inactive": _STOPPED, "failed": _CRITICAL}
_FOR_EVER: Final = 1e6  # seconds; who asks has a limit of his own
_MOST_STUCK: Final = 2  # processes of one check that hang, beyond which no more are started
_HEAD: Final = 4096  # bytes of an answer over HTTP that are looked at
_ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_READ: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from hvring.guest.regular import main; main(sys.argv[2])"
)


def checks(settings: HealthSettings, left: dict[str, list[int]] | None = None) -> list[Check]:
    """All that these settings name.  ``left``: by the name of a check its processes that have yet to end."""
    found: list[Check] = []
    for check in _checks(settings):
        found.append(check)
        if left is not None and isinstance(check, ByProcess):
            check.left = left.setdefault(check.name, check.left)
    return found


def pace(settings: HealthSettings) -> Pace:
    """How often, how long, and how many in a row."""
    return Pace(settings.interval, settings.timeout, settings.bad, settings.good)


def _checks(settings: HealthSettings) -> Iterator[UnitCheck | HttpCheck | WordCheck | AgeCheck]:
    for unit in settings.units:
        yield UnitCheck(unit)
    for url in settings.urls:
        yield HttpCheck(url)
    if settings.file is not None:
        yield WordCheck(os.fspath(settings.file))
    for path, age in settings.ages():
        yield AgeCheck(path, age)


class ByProcess:
    """A check that has a process look; ``left``: those that have yet to end, though nobody waits for them."""

    left: list[int]


class UnitCheck(ByProcess):
    """A unit of systemd: over D-Bus where jeepney is, else by systemctl."""

    def __init__(self, unit: str, bus: str = SYSTEM_BUS) -> None:
        self.name: Final = f"unit {unit}"
        self._unit = unit
        self._bus = bus
        self.left = []

    async def find(self) -> Finding:
        """Active is healthy, inactive stopped, failed critical, and what is in between unknown."""
        state = await _settled(self._by_bus() if _has_bus(self._bus) else self._by_systemctl())
        return Finding(_STATES.get(state, _CRITICAL if state == "not-found" else _UNKNOWN), state)

    def _by_bus(self) -> Steps[str]:
        from hvring.guest.dbus import Bus, BusError, DBusAddress

        systemd, until = "org.freedesktop.systemd1", time.monotonic() + _FOR_EVER
        manager = DBusAddress("/org/freedesktop/systemd1", systemd, f"{systemd}.Manager")
        with Bus(self._bus) as bus:
            yield from bus.connect(until)
            try:
                (path,) = yield from bus.call(manager, "LoadUnit", "s", (self._unit,), until)
            except BusError as error:
                if not error.name.startswith("org.freedesktop.systemd1."):
                    raise
                return "not-found"
            unit = DBusAddress(path, systemd, f"{systemd}.Unit")
            loaded = yield from bus.get(unit, "LoadState", until)
            if loaded != "loaded":
                return str(loaded)
            return str((yield from bus.get(unit, "ActiveState", until)))

    def _by_systemctl(self) -> Steps[str]:
        words = ("systemctl", "show", "--property=LoadState,ActiveState", "--", self._unit)
        said = yield from _said(words, self.left)
        found = dict(line.partition("=")[::2] for line in said.splitlines())
        loaded = found.get("LoadState", "")
        return found.get("ActiveState", "") if loaded == "loaded" else loaded


class HttpCheck:
    """A server on this machine, without TLS: a status of 2xx is healthy."""

    def __init__(self, url: str) -> None:
        self.name: Final = f"url {url}"
        self._parts: SplitResult = urlsplit(url)

    async def find(self) -> Finding:
        """OSError: nobody listens there."""
        parts = self._parts
        host = parts.hostname or ""
        # An address and not a name: who resolves those may take his time, and in a thread.
        reader, writer = await asyncio.open_connection(
            "127.0.0.1" if host == "localhost" else host, parts.port or 80, limit=_HEAD
        )
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            words = (
                f"GET {target} HTTP/1.0\r\nHost: {parts.netloc}\r\nUser-Agent: hvring\r\nAccept: */*\r\n\r\n"
            )
            writer.write(words.encode("ascii"))
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                line = error.partial
            except asyncio.LimitOverrunError:
                line = b""
        finally:
            writer.transport.abort()  # what else it says is of no interest
        fields = line.split(None, 2)
        if len(fields) < 2 or not fields[0].startswith(b"HTTP/") or not fields[1].isdigit():
            return Finding(_CRITICAL, "the answer is not HTTP")
        status = int(fields[1][:4])
        words = line.decode("latin-1").strip()
        return Finding(_HEALTHY if 200 <= status < 300 else _CRITICAL, words)


class WordCheck(ByProcess):
    """A regular file whose only word is the state."""

    def __init__(self, path: str) -> None:
        self.name: Final = f"file {path}"
        self._path = path
        self.left = []

    async def find(self) -> Finding:
        """EffectError with what is wrong with the file."""
        _, word = await _settled(_read(self._path, self.left))
        name = word.strip().upper()
        if name not in ApplicationState.__members__:
            known = ", ".join(ApplicationState.__members__).lower()
            return Finding(_CRITICAL, f"it says {word.strip()!r}; there are {known}")
        return Finding(ApplicationState[name], "it says so")


class AgeCheck(ByProcess):
    """A regular file that somebody writes as long as all is well."""

    def __init__(self, path: str, age: float) -> None:
        self.name: Final = f"age of {path}"
        self._path = path
        self._age = age
        self.left = []

    async def find(self) -> Finding:
        """EffectError with what is wrong with the file."""
        changed, _ = await _settled(_read(self._path, self.left))
        age = max(0.0, time.time() - changed)
        words = f"written {age:.0f} s ago, at most {self._age:g} s are allowed"
        return Finding(_HEALTHY if age <= self._age else _CRITICAL, words)


def _has_bus(path: str) -> bool:
    if not os.path.exists(path):
        return False
    try:
        import hvring.guest.dbus  # noqa: F401
    except ImportError:  # no jeepney
        return False
    return True


async def _settled(work: Steps[T]) -> T:
    """The result of such work, on the event loop."""
    loop = asyncio.get_running_loop()
    outcome = steps(work)
    while isinstance(outcome, Pending):
        pending: Pending[T] = outcome
        ready = asyncio.Event()
        timer = loop.call_later(max(0.0, pending.at - time.monotonic()), ready.set)
        if pending.descriptor >= 0:
            loop.add_reader(pending.descriptor, ready.set)
        try:
            await ready.wait()
        except asyncio.CancelledError:
            if pending.descriptor >= 0:
                loop.remove_reader(pending.descriptor)
            pending.cancel()
            raise
        finally:
            timer.cancel()
        if pending.descriptor >= 0:
            loop.remove_reader(pending.descriptor)
        outcome = pending.resume()
    return outcome


def _read(path: str, left: list[int]) -> Steps[tuple[float, str]]:
    """When a regular file was written, and its first words."""
    # It writes nothing, no byte code either: that may lie on a file system which a backup has frozen.
    words = (sys.executable, "-I", "-S", "-B", "-c", _READ, _ROOT, path)
    written, _, text = (yield from _said(words, left)).partition(" ")
    return float(written), text


def _said(words: tuple[str, ...], left: list[int]) -> Steps[str]:
    """What a program says; EffectError with that if it fails.  It is ended when nobody waits any more."""
    left[:] = [pid for pid in left if wait_for(pid) is None]
    if len(left) >= _MOST_STUCK:
        raise EffectError("those who looked before hang there")
    path = find(words[0]) if words[0] else None
    if path is None:
        raise EffectError(f"there is no {words[0] or 'Python interpreter'}")
    running = Command(words[0], path, words, left, keeps=True)
    try:
        failure = yield from running.until_end(time.monotonic() + _FOR_EVER)
        if failure:
            raise EffectError(running.said() or failure)
        return running.said()
    except GeneratorExit:
        running.kill()
        raise
    finally:
        running.close()
