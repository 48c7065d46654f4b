# SPDX-License-Identifier: Apache-2.0
"""Freezing the file systems of this machine for a backup (PROTOCOL §4.5.3).

Between freeze() and thaw() nothing here logs, starts a program or looks up a path: each of these may
wait for a frozen file system. What must not fail is left to the process of :mod:`hvring.guest.guardian`.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from hvring.errors import EffectBusyError, EffectError
from hvring.guest import guardian
from hvring.guest.hold import Hold, Steps
from hvring.guest.mounts import Plan, read_plan

if TYPE_CHECKING:
    from subprocess import Popen

_CAP_SYS_ADMIN: Final = 21
_GUARDIAN_END: Final = 5.0


class Freezer(Protocol):
    """What the backup service needs."""

    @property
    def ready(self) -> bool:
        """Whether a freeze can be expected to work now."""
        ...

    @property
    def frozen(self) -> bool:
        """Whether file systems are frozen now, be it only some of them or while a freeze or thaw is under way."""
        ...

    def freeze(self) -> None:
        """Freeze all or none; EffectError on failure, with everything thawed again.

        EffectBusyError while that is under way: another call goes on with it, thaw() breaks it off."""
        ...

    def thaw(self) -> None:
        """Thaw everything; EffectError if something could not be thawed, or was thawed too early.

        EffectBusyError while that is under way: another call goes on with it."""
        ...


class SystemFreezer:
    """Really freezes. For one thread; freeze() blocks while the file systems are written out, or raises
    EffectBusyError meanwhile: the guardian goes on with it, and the next call looks how far it is."""

    def __init__(
        self,
        plan: Callable[[], Plan] = read_plan,
        *,
        freeze_timeout: float = 60.0,
        deadline: float = 90.0,
        thaw_timeout: float = 30.0,
        blocking: bool = True,
    ) -> None:
        """All in seconds: ``freeze_timeout`` is for writing out and freezing; the guardian thaws by itself
        ``deadline`` after the first freeze; thaw() waits for it no longer than ``thaw_timeout``.

        ``blocking``: whether freeze() and thaw() wait for the guardian; False: EffectBusyError at once."""
        self._plan = plan
        self._freeze_timeout = freeze_timeout
        self._deadline = deadline
        self._thaw_timeout = thaw_timeout
        self._blocking = blocking
        self._hold: Hold | None = None
        self._ending: Popen[bytes] | None = None  # a guardian that has nothing left to do but to end
        self._freezing: Steps[None] | None = None  # what is under way: one of these two, or neither
        self._thawing: Steps[None] | None = None

    def plan(self) -> Plan:
        """What would be frozen now, in order, and what would not and why. Raises EffectError."""
        return self._plan()

    @property
    def ready(self) -> bool:
        """Whether this process may freeze and can start a guardian, and no earlier freeze hangs."""
        return self.obstacle() is None

    def obstacle(self) -> str | None:
        """Why a freeze cannot work, or None."""
        is_under_way = self._freezing is not None or self._thawing is not None
        return self._obstacle(hangs=not is_under_way and self._has_ended() is False)

    @property
    def frozen(self) -> bool:
        """Whether file systems are frozen now; the guardian may have thawed them by itself."""
        return self._hold is not None and self._hold.holds()

    def freeze(self) -> None:
        """Freeze all or none; EffectError names the file system at fault. Does nothing while frozen."""
        if self._thawing is not None:
            self.thaw()
        if self._freezing is None:
            if self.frozen:
                return
            self._freezing = self._freeze()
        self._go_on(self._freezing)

    def thaw(self) -> None:
        """Thaw everything; does nothing if nothing was frozen. Breaks off a freeze that is under way.

        EffectError if a file system would not thaw, or if the guardian thawed them earlier."""
        if self._thawing is None:
            if self._freezing is not None:
                self._freezing.close()
                self._freezing = None
            elif self._hold is None:
                return
            self._thawing = self._thaw()
        self._go_on(self._thawing)

    def _go_on(self, work: Steps[None]) -> None:
        """As far as it goes, or to its end."""
        is_over = True
        try:
            for descriptor, until in work:
                if not self._blocking:
                    is_over = False
                    raise EffectBusyError("the guardian is at work")
                _wait(descriptor, until)
        except BaseException as problem:
            if not isinstance(problem, Exception):  # whoever waits is interrupted, and asks no more
                work.close()
                self._release()
                for descriptor, until in self._end():
                    _wait(descriptor, until)
            raise
        finally:
            if is_over:
                self._freezing = self._thawing = None

    def _freeze(self) -> Steps[None]:
        if self._hold is not None:  # its guardian has thawed by itself
            self._release()
            yield from self._end()
        obstacle = self._obstacle(hangs=self._has_ended() is False)
        if obstacle is not None:
            raise EffectError(obstacle)
        self._hold = hold = Hold(self.plan().freeze, self._freeze_timeout, self._deadline)
        try:
            yield from hold.freeze()
        except Exception:
            self._release()
            if not hold.is_stuck:
                yield from self._end()
            raise

    def _thaw(self) -> Steps[None]:
        hold = self._hold
        if hold is None:  # broken off before it began, or after it had failed
            yield from self._end()
            return
        try:
            yield from hold.thaw(self._thaw_timeout)
        except Exception:
            self._release()
            if not hold.is_stuck:
                yield from self._end()
            raise
        self._release()
        yield from self._end()

    def _release(self) -> None:
        if self._hold is not None:
            self._ending = self._hold.close() or self._ending
            self._hold = None

    def _end(self) -> Steps[None]:
        """Until the last guardian has ended, if it does so soon."""
        if self._has_ended() is not False:
            return
        assert self._ending is not None
        descriptor = os.pidfd_open(self._ending.pid)
        try:
            until = time.monotonic() + _GUARDIAN_END
            while not self._has_ended() and time.monotonic() < until:
                yield descriptor, until
        finally:
            os.close(descriptor)

    def _has_ended(self) -> bool | None:
        """Whether the last guardian has; None if there was none."""
        return None if self._ending is None else self._ending.poll() is not None

    def _obstacle(self, *, hangs: bool) -> str | None:
        if hangs:
            return "an earlier freeze still hangs in the kernel"
        if not _may_freeze():
            return "freezing needs root (CAP_SYS_ADMIN)"
        if not sys.executable or not os.path.isfile(guardian.__file__):
            return "there is no Python interpreter to start the guardian with"
        return None


#: What a rehearsal records at most: a host could go on for ever.
_REMEMBERED: Final = 1000


class RehearsedFreezer:
    """Keeps the same state and freezes nothing; ``events`` records what would have been done lately."""

    def __init__(self, plan: Callable[[], Plan] = read_plan) -> None:
        self._plan = plan
        self._frozen = False
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

    def freeze(self) -> None:
        """Record what would be frozen; raises EffectError if that cannot be found out."""
        if not self._frozen:
            targets = ", ".join(filesystem.target for filesystem in self.plan().freeze)
            self._rehearse(f"freeze {targets or 'nothing'}")
            self._frozen = True

    def thaw(self) -> None:
        """Record the thaw."""
        if self._frozen:
            self._frozen = False
            self._rehearse("thaw")

    def _rehearse(self, event: str) -> None:
        import logging

        self.events.append(event)
        del self.events[:-_REMEMBERED]
        logging.getLogger("hvring.guest").info("rehearsal: would %s", event)


def _wait(descriptor: int, until: float) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll(max(0.0, until - time.monotonic()) * 1000)


def _may_freeze() -> bool:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as facts:
        for line in facts:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False
