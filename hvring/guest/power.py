# SPDX-License-Identifier: Apache-2.0
"""Powering off, restarting and hibernating this machine (PROTOCOL §4.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final, Literal, Protocol, runtime_checkable

from hvring.guest.rehearsal import rehearse
from hvring.pending import Pending, Steps, steps
from hvring.reasons import Obstacle, Reason


class PowerAction(Enum):
    """What the host may ask for."""

    OFF = "power off"
    RESTART = "restart"
    HIBERNATE = "hibernate"


@dataclass(frozen=True, slots=True)
class ShutdownOrder:
    """One request of the host: ``timeout`` in seconds, ``reason`` a Windows SHTDN_REASON code."""

    action: PowerAction
    force: bool = False
    reason: int = 0
    timeout: int = 0
    text: str = ""


Begun = Callable[[], None]
"""The action is certain and still held up: called once the host was answered, to let it go on.  Does not raise."""


OnDrain = Callable[[ShutdownOrder], "Pending[None] | None"]
"""What is to be done before the machine goes down; it may take its time, up to the host's deadline."""


class Power(Protocol):
    """What the shutdown service needs."""

    def supports(self, action: PowerAction) -> bool:
        """Whether ``act`` can be expected to work for this action."""
        ...

    def act(self, order: ShutdownOrder) -> Begun | Pending[Begun | None] | None:
        """Start the action, and say so once it is certain to come: the host is told after that.

        A :data:`Begun` is called when the answer has left; None: nothing has to be let go.  EffectError, at once or
        from the Pending: it was not started.  What was begun goes on when nobody resumes or cancels it.
        """
        ...


@runtime_checkable
class KnowsObstacles(Protocol):
    """A :class:`Power` that says why it does not support an order."""

    def obstacle(self, order: ShutdownOrder) -> str | None:
        """What is in the way of this order, for people, best an Obstacle; None if nothing is known to be."""
        ...


#: The ways to do it, in the order in which they are tried; each gives way to the next if it cannot be used or fails.
Way = Literal["logind", "systemctl", "init", "command"]
WAYS: Final[tuple[Way, ...]] = ("logind", "systemctl", "init", "command")

#: The last way: tried in this order; a command that is missing or fails gives way to the next one.
COMMANDS: Final[Mapping[PowerAction, Sequence[Sequence[str]]]] = MappingProxyType(
    {
        PowerAction.OFF: (("/sbin/poweroff",),),
        PowerAction.RESTART: (("/sbin/reboot",),),
        PowerAction.HIBERNATE: (("/sbin/hyperv-hibernate",),),
    }
)

SYSTEM_BUS: Final = "/run/dbus/system_bus_socket"
_GOING_DOWN: Final = 60.0  # seconds after which what was begun has come to nothing


@dataclass(frozen=True, slots=True)
class Places:
    """Where :class:`SystemPower` looks; a test or a container may have them elsewhere."""

    sysfs: str = "/sys"
    proc: str = "/proc"
    sleep_states: str | None = None  #: in place of sysfs's ``power/state``
    inhibitors: str = "/run/systemd/inhibit"
    bus: str = SYSTEM_BUS
    run: str = "/run"
    first: int = 1  #: the first process


@dataclass(slots=True)
class _Going:
    """What has been begun: processes that were not waited for, and the action, with the time until which it counts."""

    left: list[int] = field(default_factory=list)
    began: tuple[PowerAction, float] | None = None


class SystemPower:
    """Really does it, by logind, systemctl, a signal to the first process, or a command, and without a shell.

    Each way has ``timeout`` seconds.  ValueError for a way that there is not.
    """

    def __init__(
        self,
        commands: Mapping[PowerAction, Sequence[Sequence[str]]] = COMMANDS,
        *,
        ways: Sequence[Way] = WAYS,
        timeout: float = 10.0,
        places: Places | None = None,
    ) -> None:
        for way in ways:
            if way not in WAYS:
                raise ValueError(f"there is no way {way!r} to power off; there are {', '.join(WAYS)}")
        self._commands = commands
        self._ways = ways
        self._timeout = timeout
        self._places = places or Places()
        self._going = _Going()

    def inherit(self, before: SystemPower) -> None:
        """Settings may be read anew while the machine goes down."""
        self._going = before._going

    def supports(self, action: PowerAction) -> bool:
        """Whether a way is there and nothing is known to be in the way."""
        return self.obstacle(ShutdownOrder(action)) is None

    def obstacle(self, order: ShutdownOrder) -> str | None:
        """No way; another action under way; for hibernation no swap and the like; a lock, unless it is forced."""
        from hvring.guest import hibernation, inhibitors, power_ways  # only who is asked needs to know how

        places, action = self._places, order.action
        began = self._going.began
        if began is not None and began[0] is not action and time.monotonic() < began[1]:
            words = f"this machine is about to {began[0].value}"
            return Obstacle(words, Reason.ANOTHER_UNDER_WAY)
        missing = [power_ways.missing(way, action, self._commands[action], places) for way in self._ways]
        if None not in missing:
            words = f"there is no way: {'; '.join(word for word in missing if word) or 'none is configured'}"
            return Obstacle(words, Reason.NO_WAY)
        if action is PowerAction.HIBERNATE:
            found = hibernation.obstacle(places.sysfs, places.proc, places.sleep_states)
            if found is not None:
                return Obstacle(found, Reason.CANNOT_HIBERNATE)
        what = "sleep" if action is PowerAction.HIBERNATE else "shutdown"
        holder = None if order.force else inhibitors.blocking(places.inhibitors, what)
        return None if holder is None else Obstacle(holder, Reason.INHIBITED)

    def act(self, order: ShutdownOrder) -> Begun | Pending[Begun]:
        """By the first way that works; one that fails or takes too long gives way to the next one."""
        return steps(self._begin(order))

    def _begin(self, order: ShutdownOrder) -> Steps[Begun]:
        from hvring.guest import power_ways

        commands = self._commands[order.action]
        begun = yield from power_ways.begin(
            order, self._ways, commands, self._timeout, self._places, self._going.left
        )
        if order.action is not PowerAction.HIBERNATE:
            self._going.began = (order.action, time.monotonic() + _GOING_DOWN)
        return begun


class RehearsedPower:
    """Records the newest orders in ``orders`` and does nothing else."""

    def __init__(self) -> None:
        self.orders: list[ShutdownOrder] = []

    def supports(self, action: PowerAction) -> bool:  # noqa: ARG002
        """Everything can be rehearsed."""
        return True

    def obstacle(self, order: ShutdownOrder) -> str | None:  # noqa: ARG002
        """There is none."""
        return None

    def act(self, order: ShutdownOrder) -> None:
        """Record the order."""
        rehearse(self.orders, order, order.action.value)
