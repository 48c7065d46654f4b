# SPDX-License-Identifier: Apache-2.0
"""A freezer around a freezer: hooks before the freeze and after the thaw (docs/hooks.md)."""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from hvring.errors import EffectError
from hvring.guest.freezer import Freezer, SystemFreezer
from hvring.guest.hooks.found import Found, find
from hvring.guest.hooks.timeouts import Timeouts
from hvring.pending import Pending, Steps, Wait, awaited, is_due, settle, steps
from hvring.reasons import Obstacle, Reason

if TYPE_CHECKING:
    from hvring.guest.disks import NamedDisk
    from hvring.guest.hooks.applications import Applications
    from hvring.guest.hooks.objects import BackupHook, ObjectRun
    from hvring.guest.hooks.run import HookRun, Outcome
    from hvring.guest.launch import Way

_ANSWER: Final = 25.0  # seconds for the thaw and the hooks' ends, before the host is answered without them


class HookedFreezer:
    """Prepares, freezes and ends by hooks around ``freezer``; without any, it is as that one.

    freeze() raises EffectError, and nothing is frozen, when a hook fails, or is refused.  thaw() thaws first, and then
    tells the hooks; a hook that fails at its end is told by :meth:`complaints` and stops nothing.
    """

    def __init__(
        self,
        freezer: Freezer,
        directories: Sequence[tuple[str, str]],
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - it is frozen
        *,
        objects: Sequence[BackupHook] = (),
        applications: Applications | None = None,
        entry_points: bool = False,
        answer: float = _ANSWER,
        ways: Callable[[], Sequence[Way]] | None = None,
        blocking: bool = True,
    ) -> None:
        """``objects`` are called first, then programs, and then ``applications`` are told; the ends come in reverse.
        ``entry_points``: whether hooks that Python packages bring are run, after the directories'.

        ``directories``: path and style (:data:`~hvring.guest.hooks.found.STYLES`), in the order of freezing.

        ``ways``: how the process that runs them may be started, the best way first; None: as it is usual.
        ``answer``: seconds after which thaw() is over while hooks are still at their end.  ``blocking``: whether
        freeze() and thaw() wait for their end, or return a Pending; as of the freezer within.
        """
        self._freezer = freezer
        self._directories = tuple((os.fspath(path), style) for path, style in directories)
        self._timeouts = timeouts
        self._objects = tuple(objects)
        self._applications = applications
        self._entry_points = entry_points
        self._answer = answer
        self._ways = ways
        self._blocking = blocking
        self._run: HookRun | None = None
        self._own: ObjectRun | None = None
        self._is_under_way = False  # something has begun that needs its end
        self._ending: Pending[None] | None = None  # the ends of an earlier backup
        self._is_complete = False
        self._epoll: select.epoll | None = None
        self._complaints: list[tuple[str, EffectError]] = []
        self.tally: dict[
            str, dict[str, float]
        ] = {}  #: by hook: ``backups``, ``failures``, ``seconds`` of its freeze
        self._trouble = ""  # of the socket for applications

    # ------------------------------------------------------------------------- as a freezer

    @property
    def ready(self) -> bool:
        """Whether a freeze can be expected to work now."""
        self.look()
        return self.obstacle() is None

    def obstacle(self) -> str | None:
        """Why a freeze cannot work, or None: a hook that is refused is a backup that is refused."""
        inner = getattr(self._freezer, "obstacle", None)
        why: str | None = inner() if inner is not None else None if self._freezer.ready else "it is not ready"
        if why is None and (refused := self.found().refused):
            words = f"the hook {refused[0].path} is not run: {refused[0].why}"
            return Obstacle(words, Reason.HOOK_REFUSED)
        return why

    @property
    def frozen(self) -> bool:
        """Whether file systems may be frozen, or applications held."""
        return self._freezer.frozen or (self._is_complete and self._is_under_way)

    @property
    def summary(self) -> str:
        """For people: what the last freeze came to."""
        summary = str(getattr(self._freezer, "summary", ""))
        names = [hook.name for hook in self._objects] if self._own is not None else []
        names += [] if self._run is None else self._run.hooks
        names += [] if self._applications is None else self._applications.names
        return f"{summary}; hooks: {', '.join(names)}" if names else summary

    def freeze(self, named: Sequence[NamedDisk] | None = None) -> Pending[None] | None:
        """The hooks hold, and all is frozen; or EffectError, and all that began has its end.

        ``named``: as of :meth:`hvring.guest.freezer.Freezer.freeze`."""
        return self._wait(steps(self._freeze(named)))

    def thaw(self) -> Pending[None] | None:
        """Everything is thawed, and then the hooks get their end; EffectError as of the freezer within, and if a hook
        did not hold until now."""
        return self._wait(steps(self._thaw()))

    def lost(self) -> str | None:
        """Why a complete freeze does not hold any more, or None while it does."""
        inner = getattr(self._freezer, "lost", None)
        why: str | None = None if inner is None else inner()
        if why is None and self._run is not None and self._is_complete:
            why = self._run.lost()
        return why

    def watch(self) -> int:
        """A descriptor that gets readable when lost() may have an answer; -1: there is none."""
        if self._epoll is not None:
            return self._epoll.fileno()
        watch = getattr(self._freezer, "watch", None)
        return -1 if watch is None else int(watch())

    # ------------------------------------------------------------------------- of hooks

    def found(self) -> Found:
        """Which hooks there are now; runs none."""
        found = find(self._directories)
        if not self._entry_points:
            return found
        from hvring.guest.hooks import entry_point  # only here, for what it costs in memory

        more = entry_point.hooks(entry_point.names(), len(self._directories))
        return Found((*found.hooks, *more), found.refused)

    def complaints(self) -> list[tuple[str, EffectError]]:
        """What went wrong with hooks and stopped nothing since the last time: a name for it, and the error."""
        found, self._complaints = self._complaints, []
        if self._applications is not None:
            found += self._applications.complaints
            self._applications.complaints = []
        return found

    @property
    def is_ending(self) -> bool:
        """Whether hooks are at their end that took longer than the thaw."""
        return self._ending is not None

    @property
    def ending(self) -> Pending[None] | None:
        """What :meth:`look` waits for between backups: such ends, or applications that come and go; None: nothing."""
        if self._ending is not None or self._applications is None:
            return self._ending
        return Pending(lambda: None, math.inf, self._applications.fileno())

    def look(self) -> None:
        """Go on with that, if it is time.  Does not wait."""
        while self._ending is not None and is_due(self._ending):
            outcome = self._ending.resume()
            self._ending = outcome if isinstance(outcome, Pending) else None
        if self._applications is not None and not self._is_under_way:
            try:
                self._applications.listen()
                self._applications.look()
            except EffectError as error:
                if str(error) != self._trouble:  # it is tried again each time
                    self._complaints.append(("applications", error))
                self._trouble = str(error)

    def inherit(self, before: HookedFreezer) -> None:
        """Applications that are connected stay so, if the socket is the same one."""
        old, new = before._applications, self._applications
        if old is not None and new is not None and (old.path, old.group) == (new.path, new.group):
            new.inherit(old)
        self.tally = before.tally
        before.close()

    def close(self) -> None:
        """Hang up on all applications; between backups."""
        if self._applications is not None:
            self._applications.close()

    # ------------------------------------------------------------------------- inside

    def _wait(self, outcome: Pending[None] | None) -> Pending[None] | None:
        if self._blocking:
            settle(outcome)
            return None
        return outcome

    def _freeze(self, named: Sequence[NamedDisk] | None) -> Steps[None]:
        if self._is_complete and self.lost() is None:
            return
        while self._ending is not None:
            yield Wait(self._ending.at, self._ending.descriptor)
            self.look()
        if self._is_under_way:
            raise EffectError("an earlier freeze is not known to be over", reason=Reason.EARLIER_FREEZE)
        obstacle = self.obstacle()
        if obstacle is not None:
            reason = obstacle.reason if isinstance(obstacle, Obstacle) else Reason.FAILED
            raise EffectError(obstacle, reason=reason)
        self._is_under_way = True
        self._trouble = ""
        try:
            yield from self._hold(named)
            if self._run is not None and isinstance(self._freezer, SystemFreezer):
                self._freezer.on_guard = self._run.guard
            yield from self._freeze_within(named)
        except Exception:  # a freezer or a hook may be an embedder's own code
            if not self._freezer.frozen:
                yield from self._end("abort")
            raise
        self._watch_both()
        self._is_complete = True

    def _hold(self, named: Sequence[NamedDisk] | None) -> Steps[None]:
        """All that is to hold does."""
        hooks = self.found().hooks
        mounts = self._mounts(named) if hooks or self._objects else []
        if self._objects:
            from hvring.guest.hooks.objects import Backup, ObjectRun

            backup = Backup(os.urandom(8).hex(), tuple(mounts))
            self._own = ObjectRun(self._objects, backup, self._timeouts.hook)
            yield from self._own.begin()
        if hooks:
            from hvring.guest.hooks.run import (
                HookRun,  # only here, for what it costs where there are no hooks
            )

            names = [hook.name for hook in hooks if hook.group == len(self._directories)]
            self._run = HookRun(self._directories, mounts, self._timeouts, self._ways, entry_points=names)
            yield from self._run.begin()
        if self._applications is not None:
            yield from self._applications.freeze()

    def _watch_both(self) -> None:
        if self._run is None:
            return
        self._epoll = select.epoll()
        watch = getattr(self._freezer, "watch", None)
        for descriptor in (self._run.fileno(), -1 if watch is None else watch()):
            if descriptor >= 0:
                self._epoll.register(descriptor, select.EPOLLIN)

    def _freeze_within(self, named: Sequence[NamedDisk] | None) -> Steps[None]:
        outcome = self._freezer.freeze() if named is None else self._freezer.freeze(named)
        if isinstance(outcome, Pending):
            yield from awaited(outcome)

    def _mounts(self, named: Sequence[NamedDisk] | None) -> list[str]:
        make = getattr(self._freezer, "plan", None)
        if make is None:
            return []
        plan = make()
        if named is not None:
            from hvring.guest.disks import narrowed

            plan = narrowed(plan, named)
        return [filesystem.target for filesystem in plan.freeze]

    def _thaw(self) -> Steps[None]:
        until = time.monotonic() + self._answer
        lost = None
        try:
            outcome = self._freezer.thaw()
            if isinstance(outcome, Pending):
                yield from awaited(outcome)
        except EffectError as error:
            if self._freezer.frozen:
                raise
            lost = error
        was_complete, self._is_complete = self._is_complete, False
        if self._is_under_way and self._ending is None:
            why = self._run.lost() if was_complete and self._run is not None else None
            if why is not None:
                lost = lost or EffectError(why, reason=why.reason)
            word = "thaw" if was_complete and lost is None else "abort"
            ending = steps(self._end(word))
            while isinstance(ending, Pending):
                self._ending = ending
                if time.monotonic() >= until:
                    break
                yield Wait(min(until, ending.at), ending.descriptor)
                self.look()
                ending = self._ending
        if lost is not None:
            raise lost

    def _end(self, word: str) -> Steps[None]:
        """Each that has begun gets its end; what goes wrong is told later."""
        if self._applications is not None:
            self._applications.end(word)
        if self._run is not None:
            try:
                yield from self._run.end(word)
            except EffectError as error:
                self._complaints.append(("hooks", error))
            outcomes = (one for one in self._run.outcomes if one.why and one.phase not in _BEFORE)
            self._complaints += map(_complaint, outcomes)
            self._count(self._run.outcomes)
            self._run.close()
            self._run = None
        if self._own is not None:
            yield from self._own.end(word)
            self._complaints += self._own.complaints
            self._own = None
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        self._is_under_way = False

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        for name in dict.fromkeys(one.hook for one in outcomes):
            tally = self.tally.setdefault(name, {"backups": 0, "failures": 0, "seconds": 0.0})
            tally["backups"] += 1
            tally["failures"] += sum(bool(one.why) for one in outcomes if one.hook == name)
            for one in outcomes:
                if (one.hook, one.phase) == (name, "freeze"):
                    tally["seconds"] = one.seconds
        while len(self.tally) > _MOST_COUNTED:
            self.tally.pop(next(iter(self.tally)))


_MOST_COUNTED: Final = 200  # hooks, of which most are not there any more
_BEFORE: Final = ("prepare", "freeze")  # a failure of which has failed the backup


def _complaint(outcome: Outcome) -> tuple[str, EffectError]:
    words = f"the hook {outcome.hook} at {outcome.phase}: {outcome.why}"
    return f"hook {outcome.hook}", EffectError(words, reason=Reason.HOOK_FAILED)
