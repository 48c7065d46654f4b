# SPDX-License-Identifier: Apache-2.0
"""Backup: hold the file systems still, and never for longer than a bounded time (PROTOCOL §4.5).

========  ======  ================
state     event   step
========  ======  ================
idle      FREEZE  freeze
freezing  FREEZE  wait
freezing  THAW    break off
freezing  reset   break off
freezing  done    hold
freezing  failed  forget
freezing  held    give up
freezing  time    break off
frozen    THAW    thaw
frozen    reset   thaw
frozen    lost    lapse
frozen    time    lapse
thawing   FREEZE  thaw first
thawing   THAW    wait
thawing   done    thawed
thawing   failed  thawed
thawing   held    give up
unthawed  FREEZE  thaw first
unthawed  THAW    thaw
unthawed  time    thaw
lapsing   FREEZE  thaw first
lapsing   THAW    confess
lapsing   reset   disclose
lapsing   done    lapsed
lapsing   failed  lapsed
lapsing   held    try again
lapsing   time    lapse
lapsed    FREEZE  freeze
lapsed    THAW    confess
lapsed    reset   forget
========  ======  ================

What is not in the table changes nothing; THAW is OK then.  It is FAIL, whatever it does, as the first word of a backup
over this channel: the freeze that it ends was another channel's, or a process's that is gone, and is over.

A freezer may take its time (Pending): whoever has asked waits for the same work, and :meth:`Vss.tick` goes on with it
when nobody waits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, cast, runtime_checkable

from hvring.errors import EffectError, MessageError
from hvring.events import EventKind
from hvring.ic.frame import MessageType, Request
from hvring.ic.unreadable import Unreadable
from hvring.ic.vss import (
    FRAMEWORKS,
    FREEZE_SIZE,
    MINIMUM,
    NO_AUTO_RECOVERY,
    VERSIONS,
    Lun,
    VssFlags,
    VssFreeze,
    VssOperation,
    VssRequest,
)
from hvring.pending import Pending, is_due, soonest, then
from hvring.reasons import Obstacle, Reason
from hvring.services.base import IntegrationService, Response, Result, error_status, inherited
from hvring.status import Status

if TYPE_CHECKING:
    from hvring.guest.freezer import Freezer, WatchedFreezer

VssMessage = VssRequest | VssFlags | VssFreeze | Unreadable

MAX_FROZEN: Final = 60.0  # seconds from the first file system that is frozen
RETRY: Final = 1.0  # seconds until the next attempt when a thaw failed

_FLAGS_END: Final = 12
_OK: Final = Response()
_FAIL: Final = Response(Status.FAIL)


class BackupState(Enum):
    """Where a backup is."""

    IDLE = "idle"  # nothing is frozen
    FREEZING = "freezing"  # some may be
    FROZEN = "frozen"  # all are
    THAWING = "thawing"  # and the host knows that the freeze is over
    UNTHAWED = "unthawed"  # a thaw failed, which the host knows; it is tried again
    # The freeze did not hold and is being thawed, until that works, which the host does not know.
    LAPSING = "lapsing"
    LAPSED = "lapsed"  # all is thawed, which the host does not know


class BackupEvent(Enum):
    """What the table of steps knows to happen."""

    FREEZE = "FREEZE"  # from the host
    THAW = "THAW"  # from the host
    RESET = "reset"  # the channel's end: nobody waits any more
    DONE = "done"  # what is under way
    FAILED = "failed"  # what is under way; all is thawed
    HELD = "held"  # what is under way has failed; something may be frozen
    LOST = "lost"  # the freeze does not hold any more
    TIME = "time"  # it was frozen for too long, or it is time to try again


@runtime_checkable
class KnowsObstacle(Protocol):
    """A :class:`Freezer` that says why it is not ready."""

    def obstacle(self) -> str | None:
        """For people, best an Obstacle; None: it is ready."""
        ...


@runtime_checkable
class HasAftermath(Protocol):
    """A :class:`Freezer` that goes on with something after the thaw, and hears of what stops no backup."""

    @property
    def tally(self) -> Mapping[str, Mapping[str, float]]:
        """Of each of what it runs, by name: how often, and what came of it."""
        ...

    @property
    def is_ending(self) -> bool:
        """Whether something of the last backup is not over yet."""
        ...

    @property
    def ending(self) -> Pending[None] | None:
        """What it waits for; None: nothing.  Not to be resumed but by :meth:`look`."""
        ...

    def look(self) -> None:
        """Go on if it is time.  Does not wait."""
        ...

    def close(self) -> None:
        """Let go of what it keeps between backups: another one goes on."""
        ...

    def complaints(self) -> list[tuple[str, EffectError]]:
        """What failed since the last time: a name for it, and the error."""
        ...


class Vss(IntegrationService[VssMessage]):
    """Freezes and thaws through a :class:`~hvring.guest.freezer.Freezer`.

    ``capability_flags`` is what HOT_BACKUP answers at B+8 when it answers OK; None: the host's own bytes, as seen of
    Linux, which means to say 5 (PROTOCOL §4.5.2).  A freeze that nobody ended within ``max_frozen`` seconds, or that
    the freezer has lost, is ended by :meth:`tick`, and the THAW that comes too late for it is answered FAIL: the backup
    did not happen inside the freeze.  THAW is OK only when all is known to be thawed.  ValueError for a ``max_frozen``
    that is no time above 0, and for flags that are no 32 bits.

    ``only_named``: the freezer is told of the disks in the host's FREEZE, none where there is no such list or it cannot
    be read.  A FREEZE of further disks while others are held is refused: these are not frozen, and would not be.
    """

    name = "vss"
    kind = MessageType.VSS
    frameworks = FRAMEWORKS
    versions = VERSIONS
    minimum = MINIMUM
    in_place = True

    def __init__(
        self,
        freezer: Freezer,
        capability_flags: int | None = NO_AUTO_RECOVERY,
        *,
        max_frozen: float = MAX_FROZEN,
        only_named: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        if not 0 < max_frozen < math.inf:
            raise ValueError(f"max_frozen is {max_frozen}: a freeze needs an end")
        if capability_flags is not None and not 0 <= capability_flags < 2**32:
            raise ValueError(f"capability_flags are {capability_flags}: they have 32 bits")
        self._freezer = freezer
        self._watched = _watched(freezer)
        self._aftermath = freezer if isinstance(freezer, HasAftermath) else None
        self._capability_flags = capability_flags
        self._max_frozen = max_frozen
        self._only_named = only_named
        self._named: Sequence[Lun] = ()  # in the newest FREEZE; none: all that there are
        self._monotonic = monotonic
        self._state = BackupState.IDLE
        self._work: _Work | None = None  # what is under way
        self._due: float | None = None  # when TIME happens
        self._since: float | None = None  # when the first file system was frozen
        self._held = 0.0
        self._next: Vss | None = None  # whose settings are to be taken
        self._is_asked = False  # for a backup, over this channel
        self._is_over = False  # a backup, and what it left to do is to be looked at
        self._complained: set[str] = set()  # what went wrong with the one before it, and stopped nothing
        self._complaining: set[str] = set()  # and with this one

    def adopt(self, fresh: Vss) -> None:
        """After the thaw, if something is frozen: what a freezer froze, only it can thaw."""
        self._next = fresh
        self._take_over()

    # ------------------------------------------------------------------------- messages

    def decode(self, request: Request) -> VssMessage:
        named = _list_of_disks(request.body) if self._only_named else None
        return VssRequest.decode(request.body) if named is None else named

    def handle(self, message: VssMessage) -> Result:
        if isinstance(message, Unreadable):  # which is no reason to freeze, nor to end a freeze
            raise message.error
        operation = VssOperation.FREEZE if isinstance(message, VssFreeze) else message.operation
        match operation:
            case VssOperation.HOT_BACKUP:
                return self._hot_backup()
            case VssOperation.GET_DM_INFO:
                return Response(message=VssFlags(operation))
            case VssOperation.FREEZE:
                return self._asked_to_freeze(message.luns if isinstance(message, VssFreeze) else ())
            case VssOperation.THAW:
                return self._asked_to_thaw()
        if operation > VssOperation.QUERY_CLUSTER:
            self.counters.unknown_operation += 1
        return _OK  # nothing to do, and Linux says so to it

    def encode(self, request: Request, response: Response) -> bytes | Request:
        # What is behind the flags is the host's, and comes back.
        body = None if response.message is None else response.message.encode()[:_FLAGS_END]
        return request.answer(response.status, body)

    # ------------------------------------------------------------------------- what an agent sees

    @property
    def state(self) -> BackupState:
        """Where the backup is."""
        return self._state

    @property
    def frozen(self) -> bool:
        """Whether this service holds a freeze, be it one that is not complete or being thawed."""
        if self._state is BackupState.FREEZING:
            return self._due is not None
        return self._state not in (BackupState.IDLE, BackupState.LAPSED)

    @property
    def frozen_for(self) -> float | None:
        """Seconds since the first file system was frozen; None while none is."""
        return None if self._since is None else self._monotonic() - self._since

    @property
    def seconds_frozen(self) -> float:
        """All freezes of this service together."""
        return self._held + (self.frozen_for or 0.0)

    @property
    def hooks(self) -> Mapping[str, Mapping[str, float]]:
        """Of each hook that was run, by its name: ``backups``, ``failures``, ``seconds`` of its newest freeze."""
        return {} if self._aftermath is None else self._aftermath.tally

    @property
    def quiet(self) -> bool:
        return self._state not in (BackupState.IDLE, BackupState.LAPSED)

    def reset(self) -> None:
        super().reset()
        self._is_asked = False
        self._happen_unasked(BackupEvent.RESET)

    def deadline(self) -> float | None:
        pending = None if self._work is None else self._work.pending
        ending = self._ending()
        at = soonest(
            self._due, None if pending is None else pending.at, None if ending is None else ending.at
        )
        return soonest(super().deadline(), None if at is None else max(0.0, at - self._monotonic()))

    def watch(self) -> int:
        if self._work is not None and self._work.pending is not None:
            return self._work.pending.descriptor
        if self._watched is not None and self._state is BackupState.FROZEN:
            return self._watched.watch()
        ending = self._ending()
        return -1 if ending is None else ending.descriptor

    def tick(self) -> None:
        super().tick()
        self._look_after()
        self._go_on(by_the_clock=True)
        self._look()
        if self._due is not None and self._monotonic() >= self._due:
            self._happen_unasked(BackupEvent.TIME)

    # ------------------------------------------------------------------------- what happens

    def _asked_to_thaw(self) -> Result:
        self._look()
        result = self._happen(BackupEvent.THAW)
        if self._is_asked:
            return result
        # The freeze was another channel's, or another process's, and did not hold: a backup that goes on is none.
        self._is_asked = True
        words = "the host ends a freeze that it did not ask for over this channel"
        self.note("backup", EffectError(words, reason=Reason.FREEZE_LOST))
        return then(result, lambda _: _FAIL)

    def _asked_to_freeze(self, named: Sequence[Lun]) -> Result:
        self._look()
        self._is_asked = True
        if self._state not in (BackupState.FREEZING, BackupState.FROZEN):
            self._named = named
        elif self._only_named and self._named and not (named and set(named) <= set(self._named)):
            words = "other disks are frozen than those that the host names now"
            self.note("freeze", EffectError(words, reason=Reason.EARLIER_FREEZE))
            return _FAIL
        return self._happen(BackupEvent.FREEZE)

    def _happen(self, event: BackupEvent) -> Result:
        step = STEPS.get((self._state, event))
        return _OK if step is None else step(self)

    def _happen_unasked(self, event: BackupEvent) -> None:
        """Nobody waits for what this begins, or for what it does not end: :meth:`tick` alone goes on with that."""
        self._happen(event)
        if self._work is not None:
            self._work.forget()

    def _look(self) -> None:
        """Whether a freeze still holds."""
        if self._state is BackupState.FROZEN and self._watched is not None:
            why = self._watched.lost()
            if why is not None:
                reason = why.reason if isinstance(why, Obstacle) else Reason.FREEZE_LOST
                self.note("backup", EffectError(f"the freeze did not hold: {why}", reason=reason))
                self._happen(BackupEvent.LOST)

    def _look_after(self) -> None:
        """What a backup has left to do, and what went wrong with it and stopped nothing."""
        if self._aftermath is None or self.quiet:
            return
        self._aftermath.look()
        for what, error in self._aftermath.complaints():
            self._complaining.add(what)
            self.note(what, error)
        if self._is_over and not self._aftermath.is_ending:
            self._is_over = False
            for what in self._complained - self._complaining:
                self.worked(what)
            self._complained, self._complaining = self._complaining, set()
        self._take_over()

    def _ending(self) -> Pending[None] | None:
        return None if self._aftermath is None or self.quiet else self._aftermath.ending

    def _enter(self, state: BackupState, due: float | None = None) -> None:
        """``due``: seconds until TIME."""
        self._state = state
        self._due = None if due is None else self._monotonic() + due
        if self._since is not None and not self.frozen:
            self._held += self._monotonic() - self._since
            self._since = None
        self._take_over()

    def _take_over(self) -> None:
        fresh = self._next
        if fresh is None or self._state not in (BackupState.IDLE, BackupState.LAPSED):
            return
        # One that is not ready may know of a freeze that hangs, which a new one would try again.
        if fresh._freezer.ready and not self._freezer.ready:
            return
        if self._aftermath is not None and self._aftermath.is_ending:
            return
        self._next = None
        inherited(fresh._freezer, self._freezer)
        if self._aftermath is not None:
            self._aftermath.close()
        self._freezer, self._watched, self._aftermath = fresh._freezer, fresh._watched, fresh._aftermath
        self._capability_flags, self._max_frozen = fresh._capability_flags, fresh._max_frozen
        self._only_named = fresh._only_named

    def _is_ready(self) -> bool:
        """False: why not is told."""
        if self._freezer.ready:
            self.worked("preparing a backup")
            return True
        words = self._freezer.obstacle() if isinstance(self._freezer, KnowsObstacle) else None
        reason = words.reason if isinstance(words, Obstacle) else Reason.FAILED
        self.note("preparing a backup", EffectError(words or "the freezer is not ready", reason=reason))
        return False

    def _hot_backup(self) -> Response:
        self._is_asked = True
        self._take_over()
        if not self._is_ready():
            return _FAIL
        if self._capability_flags is None:
            return _OK
        return Response(message=VssFlags(VssOperation.HOT_BACKUP, self._capability_flags))

    # ------------------------------------------------------------------------- work that takes its time

    def _begin(self, what: str, effect: Callable[[], Pending[None] | None]) -> _Work:
        self._work = work = _Work(what)
        self._drive(work, effect)
        return work

    def _go_on(self, by_the_clock: bool = False) -> None:
        work = self._work
        if work is None or work.pending is None:
            return
        # Whoever waits for an answer waits for this descriptor, too, and must find it as it is.
        only_time = by_the_clock and work.is_waited_for
        now = self._monotonic()
        if now >= work.pending.at if only_time else is_due(work.pending, now):
            self._drive(work, work.pending.resume)

    def _drive(self, work: _Work, step: Callable[[], Pending[None] | None]) -> None:
        work.pending = None
        try:
            work.pending = step()
        except Exception as error:  # a freezer may be an embedder's own code
            work.error = error
        if work.pending is None:
            self._work = None
            self._end(work)
        elif self._state is BackupState.FREEZING and self._due is None and self._freezer.frozen:
            self._since = self._monotonic()
            self._due = self._since + self._max_frozen

    def _end(self, work: _Work) -> None:
        if work.error is None:
            self.worked(work.what)
            self._happen(BackupEvent.DONE)
            self._look_after()
            return
        is_held = self._freezer.frozen
        if is_held or self._state is not BackupState.LAPSING:  # that it did not hold was said before
            self.note(work.what, work.error)
        self._happen(BackupEvent.HELD if is_held else BackupEvent.FAILED)
        self._look_after()

    def _await(self, work: _Work, verdict: Callable[[], Result]) -> Result:
        if work.pending is None:
            return verdict()

        def resume() -> Response | Pending[Response | None] | None:
            self._go_on()
            return self._await(work, verdict)

        work.is_waited_for = True
        return Pending(resume, work.pending.at, work.pending.descriptor, work.forget)

    # ------------------------------------------------------------------------- the steps of the table

    def _freeze(self) -> Result:
        self._take_over()
        if not self._is_ready():
            self._enter(BackupState.IDLE)
            return _FAIL
        self.tell(EventKind.ASKED, "freeze")
        self._enter(BackupState.FREEZING)
        freeze = self._freezer.freeze
        return self._wait_for(
            self._begin("freeze", partial(freeze, self._named) if self._only_named else freeze)
        )

    def _wait(self) -> Result:
        return _FAIL if self._work is None else self._wait_for(self._work)

    def _wait_for(self, work: _Work) -> Result:
        return self._await(
            work, lambda: Response(Status.OK if work.error is None else error_status(work.error))
        )

    def _hold(self) -> Result:
        due, self._state = self._due, BackupState.FROZEN
        self._since = self._monotonic() if self._since is None else self._since
        self._due = self._monotonic() + self._max_frozen if due is None else due
        self.worked("backup")  # so that it is news when this one is lost
        self.tell(EventKind.FROZEN, "" if self._watched is None else self._watched.summary)
        return None

    def _thaw(self) -> Result:
        self._enter(BackupState.THAWING)
        return self._wait_for(self._begin("thaw", self._freezer.thaw))

    def _break_off(self) -> Result:
        freeze, self._work = self._work, None
        if freeze is not None:
            pending, freeze.pending = freeze.pending, None
            freeze.error = EffectError(
                "the freeze was broken off before it was complete", reason=Reason.FREEZE_BROKEN_OFF
            )
            self.note(freeze.what, freeze.error)
            if pending is not None:
                pending.cancel()
        return self._thaw()

    def _lapse(self) -> Result:
        if self._due is not None and self._monotonic() >= self._due and self._state is BackupState.FROZEN:
            words = f"nobody ended the freeze within {self._max_frozen:g} seconds"
            self.note("backup", EffectError(words, reason=Reason.FREEZE_EXPIRED))
        self._enter(BackupState.LAPSING)
        self._begin("thaw", self._freezer.thaw)
        return None

    def _try_again(self) -> Result:
        self._enter(self._state, RETRY)
        return None

    def _give_up(self) -> Result:
        self._enter(BackupState.UNTHAWED, RETRY)
        return None

    def _thawed(self) -> Result:
        self._is_over = True
        self._enter(BackupState.IDLE)
        self.tell(EventKind.THAWED)
        return None

    def _lapsed(self) -> Result:
        self._enter(BackupState.LAPSED)
        self.tell(EventKind.THAWED, "before the host asked for it")
        return None

    def _forget(self) -> Result:
        self._enter(BackupState.IDLE)
        return None

    def _confess(self) -> Result:
        """The host hears that the freeze did not hold, and from here on knows."""
        if self._state is BackupState.LAPSED:
            self._enter(BackupState.IDLE)
            return _FAIL
        self._disclose()
        return _FAIL if self._work is None else self._await(self._work, lambda: _FAIL)

    def _disclose(self) -> Result:
        """What is under way goes on, and is begun if it is not; there is nothing to keep back any more."""
        self._enter(BackupState.THAWING)
        if self._work is None:
            self._begin("thaw", self._freezer.thaw)
        return None

    def _thaw_first(self) -> Result:
        """A freeze is never answered by what is left of another one."""
        self._disclose()
        if self._work is None:
            return self._freeze_if_idle()
        return self._await(self._work, self._freeze_if_idle)

    def _freeze_if_idle(self) -> Result:
        return self._freeze() if self._state is BackupState.IDLE else _FAIL


def _list_of_disks(body: bytes) -> VssFreeze | None:
    """A FREEZE whose list can be read."""
    if len(body) < FREEZE_SIZE or body[0] != VssOperation.FREEZE:
        return None
    try:
        return VssFreeze.decode(body)
    except MessageError:
        return None


def _watched(freezer: Freezer) -> WatchedFreezer | None:
    """The same, if it can tell more than it must."""
    can = all(hasattr(freezer, name) for name in ("summary", "lost", "watch"))
    return cast("WatchedFreezer", freezer) if can else None


class _Work:
    """A freeze or thaw, which may be under way for a while, and what those who wait for it are told then."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.pending: Pending[None] | None = None
        self.error: Exception | None = None
        self.is_waited_for = False

    def forget(self) -> None:
        """Nobody waits for the answer any more."""
        self.is_waited_for = False


Step = Callable[[Vss], Result]


def _rows(state: BackupState, **steps: Step) -> dict[tuple[BackupState, BackupEvent], Step]:
    return {(state, BackupEvent[name]): step for name, step in steps.items()}


STEPS: Final[dict[tuple[BackupState, BackupEvent], Step]] = {
    **_rows(BackupState.IDLE, FREEZE=Vss._freeze),
    **_rows(
        BackupState.FREEZING,
        FREEZE=Vss._wait,
        THAW=Vss._break_off,
        RESET=Vss._break_off,
        DONE=Vss._hold,
        FAILED=Vss._forget,
        HELD=Vss._give_up,
        TIME=Vss._break_off,
    ),
    **_rows(
        BackupState.FROZEN,
        THAW=Vss._thaw,
        RESET=Vss._thaw,
        LOST=Vss._lapse,
        TIME=Vss._lapse,
    ),
    **_rows(
        BackupState.THAWING,
        FREEZE=Vss._thaw_first,
        THAW=Vss._wait,
        DONE=Vss._thawed,
        FAILED=Vss._thawed,
        HELD=Vss._give_up,
    ),
    **_rows(BackupState.UNTHAWED, FREEZE=Vss._thaw_first, THAW=Vss._thaw, TIME=Vss._thaw),
    **_rows(
        BackupState.LAPSING,
        FREEZE=Vss._thaw_first,
        THAW=Vss._confess,
        RESET=Vss._disclose,
        DONE=Vss._lapsed,
        FAILED=Vss._lapsed,
        HELD=Vss._try_again,
        TIME=Vss._lapse,
    ),
    **_rows(BackupState.LAPSED, FREEZE=Vss._freeze, THAW=Vss._confess, RESET=Vss._forget),
}


def table() -> str:
    """The steps, for people."""
    lines = [
        "========  ======  ================",
        "state     event   step",
        "========  ======  ================",
    ]
    for (state, event), step in STEPS.items():
        lines.append(f"{state.value:8}  {event.value:6}  {step.__name__.strip('_').replace('_', ' ')}")
    return "\n".join([*lines, lines[0]])
