# SPDX-License-Identifier: Apache-2.0
"""Freezing the file systems of this machine for a backup (PROTOCOL §4.5.3).

Between freeze() and thaw() nothing here logs, starts a program or looks up a path: each of these may
wait for a frozen file system.  What may wait is done by other processes; none of them is needed for the thaw
(decision 0006).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from hvring.errors import EffectError
from hvring.guest import guardian
from hvring.guest.capabilities import Capability, has_any
from hvring.guest.guarded import GuardedFreeze, State, Timeouts
from hvring.guest.launch import Way, ways
from hvring.guest.mounts import Plan, read_plan
from hvring.guest.rehearsal import rehearse
from hvring.pending import Pending, settle, then
from hvring.reasons import Obstacle, Reason

if TYPE_CHECKING:
    from hvring.guest.disks import NamedDisk


class Freezer(Protocol):
    """What the backup service needs.  One call at a time, but thaw() may be called while a freeze is pending, too."""

    @property
    def ready(self) -> bool:
        """Whether a freeze can be expected to work now."""
        ...

    @property
    def frozen(self) -> bool:
        """Whether file systems may be frozen: from the first one until all are known to be thawed."""
        ...

    def freeze(self, named: Sequence[NamedDisk] | None = None) -> Pending[None] | None:
        """Freeze all or none; does nothing while all are frozen.

        ``named``: the disks that the host backs up, where only these matter; with none of them, or with one that is not
        known here, all is frozen.  None: all.

        EffectError within a bounded time; when ``frozen`` is true then, not all is known to be thawed yet."""
        ...

    def thaw(self) -> Pending[None] | None:
        """Thaw everything, and break off a freeze that is pending; does nothing if nothing was frozen.

        EffectError within a bounded time: with ``frozen`` true if something is not known to be thawed, and may be tried
        again; with ``frozen`` false if all is thawed, but was thawed too early."""
        ...


class WatchedFreezer(Freezer, Protocol):
    """One that knows when a freeze does not hold any more, and what it came to."""

    @property
    def summary(self) -> str:
        """For people: what the last freeze came to, and what it left out and why."""
        ...

    def lost(self) -> str | None:
        """Why a complete freeze does not hold any more, or None while it does.  Does not wait."""
        ...

    def watch(self) -> int:
        """A descriptor that gets readable when lost() may have an answer; -1: there is none."""
        ...


class SystemFreezer:
    """Really freezes, by a guardian process that is started anew for each freeze; for one thread."""

    def __init__(
        self,
        plan: Callable[[], Plan] = read_plan,
        *,
        open_timeout: float = 5.0,
        freeze_timeout: float = 60.0,
        deadline: float = 90.0,
        thaw_timeout: float = 25.0,
        ways: Callable[[], Sequence[Way]] = ways,
        blocking: bool = True,
    ) -> None:
        """All in seconds: ``open_timeout`` is for one mount; ``freeze_timeout`` for opening, writing out and freezing
        all; the guardian thaws by itself ``deadline`` after the first freeze; thaw() ends after ``thaw_timeout``.

        ``ways``: how the guardian may be started, the best way first.  ``blocking``: whether freeze() and thaw() wait
        for their end; False: they return a Pending, as a service in a loop needs it."""
        self._plan = plan
        self._timeouts = Timeouts(open_timeout, freeze_timeout, deadline)
        self._thaw_timeout = thaw_timeout
        self._ways = ways
        self._blocking = blocking
        #: Of the next freeze, see :class:`~hvring.guest.guarded.GuardedFreeze`.
        self.on_guard: Callable[[int], int] | None = None
        self._guarded: GuardedFreeze | None = None
        self._summary = ""
        self._weakness: str | None = None

    def plan(self) -> Plan:
        """What would be frozen now, in order, and what would not and why; opens none of it.  Raises EffectError."""
        return self._plan()

    @property
    def ready(self) -> bool:
        """Whether this process may freeze and can start a guardian, and no earlier freeze hangs."""
        return self.obstacle() is None

    def obstacle(self) -> Obstacle | None:
        """Why a freeze cannot work, or None."""
        if self._guarded is not None:
            self._guarded.look()
            if self._guarded.is_stuck and self._guarded.state is not State.CLEAR:
                return Obstacle("an earlier freeze still hangs in the kernel", Reason.EARLIER_FREEZE)
        if not has_any(Capability.SYS_ADMIN):
            return Obstacle("freezing needs root (CAP_SYS_ADMIN)", Reason.NOT_PRIVILEGED)
        if not sys.executable or not os.path.isfile(guardian.__file__):
            return Obstacle(
                "there is no Python interpreter to start the guardian with", Reason.GUARDIAN_NOT_STARTED
            )
        return None

    @property
    def weakness(self) -> str | None:
        """What was wrong with the last guardian, although it worked; None: nothing."""
        return self._weakness

    @property
    def frozen(self) -> bool:
        if self._guarded is None:
            return False
        self._guarded.look()
        return self._guarded.may_hold

    @property
    def summary(self) -> str:
        return self._summary

    def freeze(self, named: Sequence[NamedDisk] | None = None) -> Pending[None] | None:
        """Freeze all or none; EffectError names the file system at fault."""
        if self._guarded is not None:
            if self._guarded.was_complete and self.lost() is None:
                return None
            self._guarded.look()
            if self._guarded.state is not State.CLEAR:
                raise EffectError("an earlier freeze is not known to be thawed", reason=Reason.EARLIER_FREEZE)
            self._guarded = None
        obstacle = self.obstacle()
        if obstacle is not None:
            raise EffectError(obstacle, reason=obstacle.reason)
        plan = _chosen(self.plan(), named)
        self._guarded = guarded = GuardedFreeze(plan.freeze, self._timeouts, self._ways(), self.on_guard)
        self.on_guard = None
        self._summary = ""
        return self._wait(then(guarded.freeze(), lambda _: self._sum_up(guarded, plan)))

    def thaw(self) -> Pending[None] | None:
        """Thaw everything; EffectError if a file system would not thaw, or if they were thawed earlier."""
        if self._guarded is None:
            return None
        guarded = self._guarded
        lost = self.lost() if guarded.was_complete else None
        return self._wait(then(guarded.thaw(self._thaw_timeout), lambda _: self._end(guarded, lost)))

    def lost(self) -> str | None:
        guarded = self._guarded
        if guarded is None or not guarded.was_complete:
            return None
        guarded.look()
        if guarded.state is State.FROZEN:
            return None
        failure = guarded.failure
        if failure is None:
            return Obstacle("it was thawed", Reason.FREEZE_LOST)
        return Obstacle(str(failure), failure.reason)

    def watch(self) -> int:
        return -1 if self._guarded is None else self._guarded.fileno()

    def _wait(self, outcome: Pending[None] | None) -> Pending[None] | None:
        if self._blocking:
            settle(outcome)
            return None
        return outcome

    def _sum_up(self, guarded: GuardedFreeze, plan: Plan) -> None:
        self._weakness = guarded.weakness
        parts = [", ".join(filesystem.target for filesystem in guarded.frozen) or "nothing"]
        if guarded.left_out:
            parts.append("not frozen: " + ", ".join(guarded.left_out))
        parts += plan.notes
        if guarded.weakness is not None:
            parts.append(guarded.weakness)
        self._summary = "; ".join(parts)

    def _end(self, guarded: GuardedFreeze, lost: str | None) -> None:
        """All is thawed."""
        if self._guarded is guarded:
            self._guarded = None
        if lost is not None:
            raise EffectError(
                f"everything was thawed before that was asked for: {lost}", reason=Reason.FREEZE_LOST
            )


class RehearsedFreezer:
    """Keeps the same state and freezes nothing; ``events`` records what would have been done lately."""

    def __init__(self, plan: Callable[[], Plan] = read_plan) -> None:
        self._plan = plan
        self._frozen = False
        self._summary = ""
        self.events: list[str] = []

    def plan(self) -> Plan:
        """What would be frozen now."""
        return self._plan()

    @property
    def ready(self) -> bool:
        """A rehearsal is always possible."""
        return True

    @property
    def frozen(self) -> bool:
        """Whether a freeze is being rehearsed."""
        return self._frozen

    @property
    def summary(self) -> str:
        """What would have been frozen."""
        return self._summary

    def lost(self) -> str | None:
        """Nothing ends a rehearsal early."""
        return None

    def watch(self) -> int:
        """There is nothing to wait for."""
        return -1

    def freeze(self, named: Sequence[NamedDisk] | None = None) -> None:
        """Record what would be frozen; raises EffectError if that cannot be found out."""
        if not self._frozen:
            plan = _chosen(self.plan(), named)
            targets = ", ".join(filesystem.target for filesystem in plan.freeze) or "nothing"
            self._summary = "; ".join((targets, *plan.notes))
            self._rehearse(f"freeze {targets}")
            self._frozen = True

    def thaw(self) -> None:
        """Record the thaw."""
        if self._frozen:
            self._frozen = False
            self._rehearse("thaw")

    def _rehearse(self, event: str) -> None:
        rehearse(self.events, event, event)


def _chosen(plan: Plan, named: Sequence[NamedDisk] | None) -> Plan:
    if named is None:
        return plan
    from hvring.guest.disks import narrowed  # only here, for what it costs in memory

    return narrowed(plan, named)
