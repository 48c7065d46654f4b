# SPDX-License-Identifier: Apache-2.0
"""The six services with their usual effects, real or rehearsed, ready for an Agent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from hvring.agent.settings import Settings, VssSettings
from hvring.guest.clock import Clock, RehearsedClock, SystemClock
from hvring.guest.files import DirectoryReceiver, FileReceiver
from hvring.guest.freezer import Freezer, RehearsedFreezer, SystemFreezer
from hvring.guest.identity import DomainName, Identity
from hvring.guest.mounts import read_plan
from hvring.guest.pools import KvpStore, PoolStore
from hvring.guest.power import Power, RehearsedPower, SystemPower
from hvring.services import Fcopy, Heartbeat, Kvp, Service, Shutdown, TimeSync, Vss
from hvring.services.kvp import KvpWithBinaryIp
from hvring.services.timesync import nobody
from hvring.vmbus import SERVICE_NAMES

if TYPE_CHECKING:
    from hvring.guest.disciplines import Discipline
    from hvring.guest.time_feed import TimeFeed


@dataclass(frozen=True, slots=True)
class Effects:
    """An embedder's own in place of the usual ones; None: the usual one, as the settings say."""

    power: Power | None = None
    clock: Clock | None = None
    store: KvpStore | None = None
    freezer: Freezer | None = None
    receiver: FileReceiver | None = None
    feed: TimeFeed | None = None
    discipline: Callable[[], Discipline | None] | None = None  # None with an own clock: nobody keeps it


def standard_services(
    settings: Settings | None = None,
    names: Iterable[str] = SERVICE_NAMES,
    *,
    effects: Effects | None = None,
) -> list[Service]:
    """The named services; ValueError for a name that there is not.  Touches nothing of this machine yet."""
    settings, effects = settings or Settings(), effects or Effects()
    return [_make(name, settings, effects) for name in dict.fromkeys(names)]


def _make(name: str, settings: Settings, effects: Effects) -> Service:
    try:
        make = _MAKERS[name]
    except KeyError:
        raise ValueError(f"no service is called {name!r}; there are {', '.join(SERVICE_NAMES)}") from None
    return make(settings, effects)


def _shutdown(settings: Settings, effects: Effects) -> Service:
    own = settings.shutdown
    if not settings.real and effects.power is None:
        return Shutdown(RehearsedPower(), own.on_request)
    power = effects.power or SystemPower(own.commands, ways=own.ways, timeout=own.timeout)
    drain = None
    if own.drain or own.on_drain:
        import shlex

        from hvring.guest.drain import Drain

        drain = Drain([shlex.split(command) for command in own.drain], own.on_drain)
    return Shutdown(power, own.on_request, drain=drain, patience=own.drain_timeout)


def _timesync(settings: Settings, effects: Effects) -> Service:
    usual = SystemClock() if settings.real else RehearsedClock()
    own = settings.timesync
    to, discipline = effects.feed, effects.discipline or nobody
    if own.mode == "feed" and to is None:
        to = _feed(own.feed_to, settings.real)
    if own.mode == "step" and effects.discipline is None and effects.clock is None:
        from hvring.guest.disciplines import Watch  # only here, for what it costs in memory

        discipline = Watch()
    return TimeSync(
        effects.clock or usual,
        mode=own.mode,
        feed=to,
        feed_uncertainty=own.feed_uncertainty,
        implicit_sync=own.implicit_sync,
        step_limit=own.step_limit,
        discipline=discipline,
    )


def _feed(to: str, real: bool) -> TimeFeed:
    from hvring.guest.time_feed import RehearsedFeed, feed  # only here, for what it costs in memory

    usual = feed(to)  # one that cannot be is refused in a rehearsal, too
    return usual if real else RehearsedFeed()


def _heartbeat(settings: Settings, _: Effects) -> Service:
    return Heartbeat(settings.heartbeat.health)


def _kvp(settings: Settings, effects: Effects) -> Service:
    own = settings.kvp
    usual = PoolStore(
        own.pool_directory,
        identity=Identity(domain_name=DomainName(max_age=own.domain_name_age)),
        timeout=own.timeout,
        max_records=own.max_records,
        stale=own.stale,
        set_ip=own.set_ip,
        set_ip_directory=own.set_ip_directory,
        set_ip_apply=own.set_ip_apply,
        real=settings.real,
    )
    return (KvpWithBinaryIp if own.binary_ip else Kvp)(effects.store or usual)


def _vss(settings: Settings, effects: Effects) -> Service:
    own = settings.vss
    plan = partial(read_plan, exclude=own.exclude, only=own.only, loops=own.loops)
    usual: Freezer = RehearsedFreezer(plan)
    if settings.real:
        usual = SystemFreezer(
            plan,
            freeze_timeout=own.freeze_timeout,
            deadline=own.deadline,
            thaw_timeout=own.thaw_timeout,
            open_timeout=own.open_timeout,
            blocking=False,
        )
        if own.hook_directories() or own.hook_objects or own.hooks_socket or own.hooks_entry_points:
            usual = _hooked(usual, own)
    return Vss(
        effects.freezer or usual, own.capability_flags, max_frozen=own.max_frozen, only_named=own.only_named
    )


def _hooked(freezer: Freezer, own: VssSettings) -> Freezer:
    from hvring.guest.hooks.freezer import HookedFreezer  # only here, for what it costs in memory
    from hvring.guest.hooks.timeouts import Timeouts

    # By then the guardian has thawed, whatever else happened.
    hold = own.deadline + own.thaw_timeout + own.freeze_timeout
    timeouts = Timeouts(own.hooks_timeout, own.hooks_total, hold)
    applications = None
    if own.hooks_socket is not None:
        from hvring.guest.hooks.applications import Applications

        applications = Applications(os.fspath(own.hooks_socket), own.hooks_socket_group, own.hooks_timeout)
    return HookedFreezer(
        freezer,
        own.hook_directories(),
        timeouts,
        objects=own.hook_objects,
        applications=applications,
        entry_points=own.hooks_entry_points,
        answer=own.thaw_timeout,
        blocking=False,
    )


def _fcopy(settings: Settings, effects: Effects) -> Service:
    own = settings.fcopy
    usual = DirectoryReceiver(
        own.allow,
        mode=own.mode,
        owner=own.owner,
        umask=own.umask,
        overwrite=own.overwrite,
        create_path=own.create_path,
        sync=own.sync,
        sha256=own.sha256,
        allocate=own.allocate,
        max_size=own.max_size,
        quota=own.quota,
        reserve=own.reserve,
        reserve_percent=own.reserve_percent,
        rules=own.terms_by_rule(),
        timeout=own.timeout,
        sync_timeout=own.sync_timeout,
        sweeps=settings.real,  # what lies about is of copies that were meant
    )
    return Fcopy(effects.receiver or usual)


_MAKERS: Final[dict[str, Callable[[Settings, Effects], Service]]] = {
    "shutdown": _shutdown,
    "timesync": _timesync,
    "heartbeat": _heartbeat,
    "kvp": _kvp,
    "vss": _vss,
    "fcopy": _fcopy,
}
