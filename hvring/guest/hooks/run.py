# SPDX-License-Identifier: Apache-2.0
"""The hooks of one backup, as the agent sees them: who has started, who holds, and who has its end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hvring.errors import EffectError
from hvring.guest.hooks import launch
from hvring.guest.hooks.found import Refused
from hvring.guest.hooks.process import KILL_GRACE, TERM_GRACE
from hvring.guest.hooks.timeouts import Timeouts
from hvring.guest.hooks.words import hear, say
from hvring.guest.launch import Way
from hvring.pending import Steps, Wait
from hvring.reasons import Obstacle, Reason

_SLACK: Final = 15.0  # seconds on top of what the other process allows itself
_RUNNERS: Final = 3  # that are started one after the other to give the ends, when they are killed
_OF_A_PROCESS: Final = 4  # its pidfd, and the ends of its pipes
_ENDS: Final = ("thaw", "abort")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one phase of one hook came to; ``why`` is empty where all went well, else it has its last words."""

    hook: str
    phase: str
    seconds: float
    held: bool = False
    why: str = ""
    words: str = ""


@dataclass(slots=True)
class _Known:
    """Of one hook, enough for another process to go on with it."""

    name: str
    has_started: bool = False
    has_end: bool = False
    holds: bool = False
    descriptors: list[int] = field(default_factory=list)  # of what runs: pidfd, stdin, stdout, stderr

    def meet(self, descriptors: list[int]) -> None:
        self.part()
        if len(descriptors) == _OF_A_PROCESS:
            self.descriptors = descriptors
        else:  # there was no room for all of them, and it goes on without its double
            for descriptor in descriptors:
                os.close(descriptor)

    def deafen(self) -> None:
        """Its standard input ends when the other process closes it."""
        if self.descriptors:
            os.dup2(self.descriptors[0], self.descriptors[1], inheritable=False)

    def part(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []
        self.holds = False

    def facts(self) -> dict[str, bool]:
        return {
            "started": self.has_started,
            "ended": self.has_end,
            "held": self.holds,
            "runs": bool(self.descriptors),
        }


class HookRun:
    """:meth:`begin`, :meth:`guard` and then :meth:`end`, whatever happened; :meth:`close` is for one forgotten."""

    def __init__(
        self,
        directories: Sequence[tuple[str, str]],
        mounts: Sequence[str],
        timeouts: Timeouts,
        ways: Callable[[], Sequence[Way]] | None = None,
        *,
        only: str | None = None,
        entry_points: Sequence[str] = (),
    ) -> None:
        """``only``: no hook but this one; ``entry_points``: names of those that Python packages bring."""
        self.backup: Final = os.urandom(8).hex()
        self.refused: tuple[Refused, ...] = ()
        self.outcomes: list[Outcome] = []
        self.is_over = False  #: each that was started has its end
        self._timeouts = timeouts
        self._ways = ways or launch.ways
        self._request: dict[str, Any] = {
            "backup": self.backup,
            "directories": [list(map(str, one)) for one in directories],
            "only": only,
            "entry_points": list(entry_points),
            "mounts": list(mounts),
            "timeout": timeouts.hook,
            "total": timeouts.total,
            "hold": timeouts.hold,
            "hooks": [],
            "known": None,
        }
        self._runner: launch.RunnerProcess | None = None
        self._known: list[_Known] = []
        self._is_ready = False
        self._is_apart = False
        self._is_met = False
        self._done: str | None = None  # the phase that is
        self._failure: EffectError | None = None
        self._lost: Obstacle | None = None
        self._lease: tuple[int, int] | None = None

    @property
    def hooks(self) -> list[str]:
        """Their names, in order."""
        return [one.name for one in self._known]

    @property
    def holds(self) -> bool:
        """Whether hooks may hold something still."""
        return not self.is_over and any(one.has_started and not one.has_end for one in self._known)

    def begin(self) -> Steps[None]:
        """All are prepared, and hold what is theirs.  EffectError names the one at fault; then :meth:`end` is due."""
        until = time.monotonic() + self._timeouts.total + _SLACK
        yield from self.start()
        for phase in ("prepare", "freeze"):
            yield from self.do(phase, until)

    def start(self) -> Steps[None]:
        """The other process has found the hooks, and has started none.  Raises EffectError."""
        yield from self._start()
        if self.refused:
            words = f"the hook {self.refused[0].path} is not run: {self.refused[0].why}"
            raise EffectError(words, reason=Reason.HOOK_REFUSED)

    def do(self, phase: str, until: float) -> Steps[None]:
        """One phase of all."""
        self._done = None
        self._order(phase)

        def is_over() -> bool:
            return self._done == phase or self._failure is not None or self._lost is not None

        yield from self._until(is_over, until)
        if self._failure is not None:
            raise self._failure
        if self._lost is not None:
            raise EffectError(self._lost, reason=self._lost.reason)
        if self._done != phase:
            raise EffectError("the process that runs the hooks does not answer", reason=Reason.HOOKS_NOT_RUN)

    def guard(self, lifeline: int) -> int:
        """``lifeline`` ends when the guardian and its child are gone: no hook gets its end before without an order.

        Returns a descriptor that whoever thaws besides them has to keep open.
        """
        if self._lease is None:
            self._lease = os.pipe2(os.O_CLOEXEC)
        if self._runner is not None:
            say(self._runner.control, {"order": "guard"}, [lifeline, self._lease[0]])
        return self._lease[1]

    def lost(self) -> Obstacle | None:
        """Why what was held is held no more, or None.  Does not wait."""
        self._look()
        return self._lost

    def fileno(self) -> int:
        """Gets readable when :meth:`lost` may have an answer; -1: nothing is to come."""
        return -1 if self._runner is None else self._runner.control.fileno()

    def end(self, word: str) -> Steps[None]:
        """``thaw`` or ``abort`` for each that has started; EffectError if it is not known of all that they got it."""
        for _ in range(_RUNNERS):
            if self._runner is not None:
                self._order(word)
                yield from self._until(lambda: self.is_over, time.monotonic() + self._time_for_ends())
                if self.is_over:
                    yield from self._until(lambda: False, time.monotonic() + _SLACK)  # its socket's end
                    self.close()
                    return
                if self._runner is not None:  # it is stopped
                    self._runner.kill()
                    yield from self._until(lambda: False, time.monotonic() + _SLACK)
                    if self._runner is not None:
                        break
            self._look()
            if not any(one.descriptors or (one.has_started and not one.has_end) for one in self._known):
                self.is_over = True
                self.close()
                return
            yield from self._replace()
        self.close()
        raise EffectError(
            "not every hook is known to have had its end: the processes that run them are killed or stopped",
            reason=Reason.HOOKS_NOT_RUN,
        )

    def close(self) -> None:
        """Whoever runs the hooks and has no order for their end aborts, once nobody holds the freeze."""
        if self._runner is not None:
            self._runner.close(False)
            self._runner = None
        if self._lease is not None:
            for descriptor in self._lease:
                os.close(descriptor)
            self._lease = None
        for one in self._known:
            one.part()

    # ------------------------------------------------------------------------- the other process

    def _start(self) -> Steps[None]:
        """By the best way that there is.  Raises EffectError."""
        ways = list(self._ways())
        problem: EffectError | None = None
        while ways:
            way = ways.pop(0)
            self._is_ready = self._is_apart = False
            descriptors = [fd for one in self._known for fd in one.descriptors]
            try:
                self._runner = launch.start(way, self._request, descriptors)
            except EffectError as error:
                problem = error
                continue
            yield from self._until(lambda: self._is_ready, time.monotonic() + way.timeout)
            if self._runner is not None and self._is_ready and (self._is_apart or not ways):
                return
            if self._runner is not None:  # nothing was asked of it yet
                self._runner.kill()
                self._runner.close(False)
                self._runner = None
        raise problem or EffectError(
            "the process that runs the hooks does not start", reason=Reason.HOOKS_NOT_RUN
        )

    def _replace(self) -> Steps[None]:
        """By one that knows what the one before it had done."""
        self._request["known"] = [one.facts() for one in self._known]
        self._lost = self._failure = None
        try:
            yield from self._start()
        except EffectError:
            yield Wait(time.monotonic() + 1.0)  # no room for a process, perhaps only now

    def _time_for_ends(self) -> float:
        return len(self._known) * (self._timeouts.hook + TERM_GRACE + KILL_GRACE) + _SLACK

    def _order(self, order: str) -> None:
        if self._runner is not None:
            say(self._runner.control, {"order": order})

    def _until(self, is_over: Callable[[], bool], until: float) -> Steps[None]:
        """Or until the other process is gone."""
        while True:
            self._look()
            if self._runner is None or is_over() or time.monotonic() >= until:
                return
            yield Wait(until, self._runner.control.fileno())

    # ------------------------------------------------------------------------- what is heard

    def _look(self) -> None:
        while self._runner is not None:
            try:
                said, descriptors = hear(self._runner.control)
            except BlockingIOError:
                return
            if said is None:
                self._runner.close(True)
                self._runner = None
                if not self.is_over:
                    self._lost = Obstacle("the process that ran the hooks was killed", Reason.HOOKS_NOT_RUN)
                return
            self._take(said, descriptors)

    def _take(self, said: Mapping[str, Any], descriptors: list[int]) -> None:
        event = said.get("event")
        if event == "here" and descriptors and self._runner is not None:
            self._runner.meet(descriptors[0])
            return
        if event == "ready":
            self._is_ready, self._is_apart = True, bool(said["apart"])
            if not self._is_met:
                self._is_met = True
                self._request["hooks"] = said["hooks"]
                self._known = [_Known(str(hook["name"])) for hook in said["hooks"]]
                self.refused = tuple(Refused(path, why) for path, why in said["refused"])
        elif event == "done":
            self._done = str(said["phase"])
        elif event == "over":
            self.is_over = True
        elif event == "expired":
            self._lost = Obstacle("the hooks held for as long as they may, and gave up", Reason.HOOK_TIMEOUT)
        elif event == "terminated":
            self._lost = Obstacle("the process that runs the hooks was told to end", Reason.HOOKS_NOT_RUN)
        elif "hook" in said:
            self._take_of(self._known[int(said["hook"])], said, descriptors)

    def _take_of(self, one: _Known, said: Mapping[str, Any], descriptors: list[int]) -> None:
        phase, why = str(said.get("phase", "")), str(said.get("why", ""))
        match said["event"]:
            case "began":
                one.has_started = True
                one.has_end |= phase in _ENDS
                one.meet(descriptors)
            case "ending":
                one.has_end = True
                one.deafen()
            case "never":
                one.has_started = False
                one.part()
            case "did" | "undone":
                one.holds = bool(said.get("held"))
                if not one.holds:
                    one.part()
                words = str(said.get("words", ""))
                self.outcomes.append(Outcome(one.name, phase, said["seconds"], one.holds, why, words))
            case "died":
                one.part()
                self.outcomes.append(Outcome(one.name, "hold", 0.0, why=why))
                self._lost = Obstacle(f"the hook {one.name} ended while it held: {why}", Reason.HOOK_FAILED)
            case "failed":
                reason = Reason.HOOK_TIMEOUT if said["reason"] == "timeout" else Reason.HOOK_FAILED
                self._failure = EffectError(f"the hook {one.name} at {phase}: {why}", reason=reason)
