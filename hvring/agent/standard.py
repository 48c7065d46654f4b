# SPDX-License-Identifier: Apache-2.0
"""The six services with their usual effects, real or rehearsed, ready for an Agent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hvring.guest.clock import RehearsedClock, SystemClock
from hvring.guest.files import DirectoryReceiver
from hvring.guest.freezer import RehearsedFreezer, SystemFreezer
from hvring.guest.pools import DIRECTORY, PoolStore
from hvring.guest.power import RehearsedPower, ShutdownOrder, SystemPower
from hvring.ic.heartbeat import ApplicationState
from hvring.services import Fcopy, Heartbeat, Kvp, Service, Shutdown, TimeSync, Vss
from hvring.vmbus import SERVICE_NAMES


@dataclass(frozen=True, slots=True)
class Effects:
    """What the services may do to this machine.

    ``real``: freeze, power off, set the clock; without it these are rehearsed: same answers, same record, nothing
    done.  ``pool_directory``: of the KVP pool files.  ``allow``: directories into which the host may copy files; none:
    every copy is refused.  ``set_clock``: whether the host's SYNC sets the clock.  ``health``: asked at each heartbeat.
    """

    real: bool = False
    pool_directory: str | os.PathLike[str] = DIRECTORY
    allow: Sequence[str | os.PathLike[str]] = ()
    set_clock: bool = False
    health: Callable[[], ApplicationState] | None = None
    on_shutdown: Callable[[ShutdownOrder], None] | None = None


def standard_services(effects: Effects, names: Iterable[str] = SERVICE_NAMES) -> list[Service]:
    """The named services; ValueError for a name that there is not."""
    return [_make(effects, name) for name in dict.fromkeys(names)]


def _make(effects: Effects, name: str) -> Service:
    try:
        return _MAKERS[name](effects)
    except KeyError:
        raise ValueError(f"no service is called {name!r}; there are {', '.join(SERVICE_NAMES)}") from None


def _shutdown(effects: Effects) -> Service:
    return Shutdown(SystemPower() if effects.real else RehearsedPower(), effects.on_shutdown)


def _timesync(effects: Effects) -> Service:
    return TimeSync(SystemClock() if effects.real else RehearsedClock(), set_clock=effects.set_clock)


def _heartbeat(effects: Effects) -> Service:
    return Heartbeat(effects.health)


def _kvp(effects: Effects) -> Service:
    PoolStore(effects.pool_directory).create()
    return Kvp(
        PoolStore(effects.pool_directory, patience=0)
    )  # it asks again itself; the other services go on


def _vss(effects: Effects) -> Service:
    # It asks again itself while the guardian is at work; the other services go on.
    return Vss(SystemFreezer(blocking=False) if effects.real else RehearsedFreezer())


def _fcopy(effects: Effects) -> Service:
    return Fcopy(DirectoryReceiver(effects.allow))


_MAKERS: Final[dict[str, Callable[[Effects], Service]]] = {
    "shutdown": _shutdown,
    "timesync": _timesync,
    "heartbeat": _heartbeat,
    "kvp": _kvp,
    "vss": _vss,
    "fcopy": _fcopy,
}
