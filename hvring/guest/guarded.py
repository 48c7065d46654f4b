# SPDX-License-Identifier: Apache-2.0
"""One freeze from the order to the thaw, as its owner sees it: the guardian, and the descriptors that both have.

state     event             step
--------  ----------------  -----------
starting  ready             open
starting  time              start again
starting  dead              note
starting  gone              next way
starting  thaw              break off
leaving   time              start again
leaving   dead              note
leaving   gone              next way
leaving   thaw              break off
opening   opened            keep
opening   time              break off
opening   dead              replace
opening   gone              replace
opening   thaw              break off
writing   freezing          go on
writing   failed            hear why
writing   stuck             hear why
writing   terminated        hear why
writing   time              break off
writing   dead              replace
writing   gone              replace
writing   thaw              break off
freezing  foreign           leave out
freezing  left_out          leave out
freezing  frozen            hold
freezing  failed            hear why
freezing  stuck             hear why
freezing  terminated        hear why
freezing  time              break off
freezing  dead              replace
freezing  gone              replace
freezing  thaw              break off
frozen    expired           hear why
frozen    terminated        hear why
frozen    time              order thaw
frozen    dead              replace
frozen    gone              replace
frozen    thaw              order thaw
thawing   clear             await end
thawing   time              rescue
thawing   dead              rescue
thawing   gone              rescue
rescuing  clear             await end
rescuing  rescued           await end
rescuing  fell              rescue
rescuing  time              rescue
ending    clear             await end
ending    rescued           end
ending    fell              end
ending    time              kill
ending    gone              end

Whatever is not in this table breaks the freeze off, but for words of who is left or has to thaw.  "clear" is the only
state in which all is known to be thawed.  Nothing here waits: what takes its time is a
:class:`~hvring.pending.Pending`.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from hvring.errors import EffectError
from hvring.guest import guardian, launch
from hvring.guest.freeze_errors import explain_freeze, explain_open, explain_stuck, freeze_reason, open_reason
from hvring.guest.mounts import Filesystem
from hvring.guest.witness import Event, Heard, Witness, close_all
from hvring.pending import Pending
from hvring.reasons import Reason

_SLACK: Final = 5.0  # seconds on top of what the guardian allows itself
_TURN: Final = 1.0  # for the guardian to thaw, before this side does it, too
_END: Final = 2.0  # for the guardian and its child to be gone, before they are killed
_RETRY: Final = 1.0
#: Longer than a rescue takes for one attempt at all mounts (guardian's _THAW_TIME, and its pause).
_SILENCES: Final = 8
_TOGETHER: Final = "the guardian is in this process's control group: what kills all of that leaves all frozen"
#: What keeps a mount from being opened and is no property of that mount.
_OUR_OWN: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM, errno.ECHILD)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds: to open one mount; to open, write out and freeze all; until the guardian thaws by itself."""

    open: float = 5.0
    freeze: float = 60.0
    deadline: float = 90.0


class State(Enum):
    """Where a freeze is."""

    STARTING = "starting"  # the guardian was started
    LEAVING = "leaving"  # it was killed before it opened anything, and once it is gone there is another way
    OPENING = "opening"  # it opens the mounts
    WRITING = "writing"  # it was told to freeze, and nothing is frozen yet
    FREEZING = "freezing"  # mounts are being frozen
    FROZEN = "frozen"  # all are, and the guardian watches over them
    THAWING = "thawing"  # it is the guardian's turn to thaw
    RESCUING = "rescuing"  # this side thaws, too
    ENDING = "ending"  # all is thawed, and the guardian and its child have to be gone
    CLEAR = "clear"  # all is known to be thawed, and nobody is left who could freeze or thaw


_DEAF: Final = (State.LEAVING, State.THAWING, State.RESCUING, State.ENDING, State.CLEAR)


class GuardedFreeze:
    """:meth:`freeze` once, then :meth:`thaw` until all is clear; who forgets that leaves it to the guardian."""

    def __init__(
        self,
        filesystems: Sequence[Filesystem],
        timeouts: Timeouts,
        ways: Sequence[launch.Way],
        on_guard: Callable[[int], int] | None = None,
    ) -> None:
        """``on_guard`` is called before the first file system is frozen, with a descriptor that ends when no guardian
        is left; it gives one that a rescue keeps open: whoever sees both end knows that nobody holds the freeze."""
        self.state = State.STARTING
        self.failure: EffectError | None = None  #: why it was not, or is no longer, frozen
        self.was_complete = False  #: all were frozen, and the owner was told
        self.is_stuck = False  #: freezing one does not end
        self.frozen: list[Filesystem] = []
        self.left_out: list[str] = []  #: what is not frozen although it was asked for, and why
        self.weakness: str | None = None  #: of the guardian, for people
        self._filesystems = filesystems
        self._timeouts = timeouts
        self._ways = list(ways)
        self._way = self._ways[-1]
        self._witness = Witness()
        self._on_guard = on_guard
        self._mounts: dict[int, int] = {}
        self._answered = 0  # mounts that were opened or cannot be
        self._is_ordered = False  # from here on, something may be frozen
        self._is_complete = False  # all were frozen: no freeze can be under way any more
        self._is_final = False  # once the rescue is done, or the guardian has said so, all is thawed
        self._trouble: tuple[int, int] | None = None
        self._silences = 0  # times that were over without a word of the rescue
        self._until = 0.0  # when the state's time is over

    # ------------------------------------------------------------------------- for the owner

    def freeze(self) -> Pending[None] | None:
        """Freeze all or none.  EffectError when none is, or when that is not known yet: look at ``state``."""
        self._start()
        give_up_at = (
            time.monotonic() + self._timeouts.freeze + 4 * _SLACK + sum(w.timeout for w in self._ways)
        )
        return self._wait(
            lambda: self.state in (State.FROZEN, State.CLEAR) or self.is_stuck,
            give_up_at,
            self._is_frozen,
            lambda: self._take(Heard(Event.THAW)),
        )

    def thaw(self, timeout: float) -> Pending[None] | None:
        """Until all is clear.  EffectError names what is not after ``timeout`` seconds; the work goes on by itself."""
        self._take(Heard(Event.THAW))
        return self._wait(
            lambda: self.state is State.CLEAR, time.monotonic() + timeout, self._is_thawed, lambda: None
        )

    @property
    def may_hold(self) -> bool:
        """Whether something may be frozen."""
        if self.state is State.ENDING:
            return self._is_ordered and not self._is_final
        return self._is_ordered and self.state not in (State.WRITING, State.CLEAR)

    def look(self) -> None:
        """Take in what has happened meanwhile."""
        while (heard := self._hear()) is not None:
            self._take(heard)
            if self.state is State.CLEAR:
                return

    def fileno(self) -> int:
        """Gets readable when :meth:`look` is due; -1 when there is nothing to come."""
        return -1 if self._witness.is_closed else self._witness.fileno()

    # ------------------------------------------------------------------------- waiting

    def _wait(
        self,
        is_over: Callable[[], bool],
        give_up_at: float,
        verdict: Callable[[], None],
        cancel: Callable[[], object],
    ) -> Pending[None] | None:
        self.look()
        if is_over() or time.monotonic() >= give_up_at:
            verdict()
            return None
        return Pending(
            lambda: self._wait(is_over, give_up_at, verdict, cancel),
            min(give_up_at, self._until),
            self.fileno(),
            cancel,
        )

    def _is_frozen(self) -> None:
        if self.state is State.FROZEN:
            self.was_complete = True
            return
        raise self.failure or EffectError("the freeze does not end", reason=Reason.FREEZE_STUCK)

    def _is_thawed(self) -> None:
        if self.may_hold:
            index, error = self._trouble or (-1, errno.ETIMEDOUT)
            what = "what may be frozen" if index < 0 else str(self._filesystems[index])
            raise EffectError(f"cannot thaw {what}: {os.strerror(error)}", reason=Reason.THAW_FAILED)

    # ------------------------------------------------------------------------- what happens

    def _hear(self) -> Heard | None:
        """What has happened next; None: nothing more."""
        if self._witness.is_closed:
            return None
        heard = self._witness.hear()
        if heard is None and time.monotonic() >= self._until:
            return Heard(Event.TIME)
        return heard

    def _take(self, heard: Heard) -> None:
        step = STEPS.get((self.state, heard.event))
        if step is None:
            step = GuardedFreeze._do_note if self.state in _DEAF else GuardedFreeze._do_break_off
        step(self, heard)

    def _enter(self, state: State, seconds: float) -> None:
        self.state = state
        self._until = time.monotonic() + seconds

    def _start(self) -> None:
        """By the best way that is left.  Raises EffectError when there is none."""
        self._way = self._ways.pop(0)
        timeouts = self._timeouts
        seconds = (timeouts.open, timeouts.freeze, timeouts.deadline)
        try:
            self._witness.start(self._way, self._filesystems, seconds)
        except EffectError:
            if not self._ways:
                self._close()
                raise
            self._start()
            return
        self._enter(State.STARTING, self._way.timeout)

    # ------------------------------------------------------------------------- the steps of the table

    def _do_open(self, heard: Heard) -> None:
        """The guardian is ready, and opens; ``index`` says whether it is apart from this process."""
        if not heard.index:
            if self._ways:  # it was to be apart, and is not
                self._do_start_again(heard)
                return
            if launch.is_managed():
                self.weakness = _TOGETHER
        if heard.error:
            self.weakness = f"the guardian's memory is not locked: {os.strerror(heard.error)}"
        self._enter(State.OPENING, self._timeouts.freeze)
        self._freeze_if_opened()

    def _do_start_again(self, _: Heard) -> None:
        """Nothing is frozen: what is there is killed, whatever it still says, and its end leads to the next way."""
        self._witness.kill()
        self._enter(State.LEAVING, _SLACK)

    def _do_next_way(self, _: Heard) -> None:
        if self._ways:
            try:
                self._start()
            except EffectError as problem:
                self.failure = problem
        else:
            self._fail("the guardian does not start", Reason.GUARDIAN_NOT_STARTED)
            self._close()

    def _do_keep(self, heard: Heard) -> None:
        filesystem = self._filesystems[heard.index]
        self._answered += 1
        if heard.descriptor >= 0:
            self._mounts[heard.index] = heard.descriptor
        elif heard.error in _OUR_OWN or (heard.error == errno.ETIMEDOUT and not filesystem.is_elsewhere):
            why = explain_open(heard.error, heard.words)
            self._fail(f"cannot open {filesystem}: {why}", open_reason(heard.error))
            self._do_break_off(heard)
            return
        else:
            self.left_out.append(f"{filesystem}: {explain_open(heard.error, heard.words)}")
        self._freeze_if_opened()

    def _do_go_on(self, _: Heard) -> None:
        self._enter(State.FREEZING, self._timeouts.freeze + _SLACK)

    def _do_leave_out(self, heard: Heard) -> None:
        if heard.event is Event.FOREIGN:
            why = "frozen by somebody else, who has to thaw it"
        else:
            why = os.strerror(heard.error)
        self.left_out.append(f"{self._filesystems[heard.index]}: {why}")
        os.close(self._mounts.pop(heard.index))

    def _do_hold(self, _: Heard) -> None:
        self._note_complete()
        self._enter(State.FROZEN, self._timeouts.deadline)

    def _do_hear_why(self, heard: Heard) -> None:
        """The guardian thaws by itself, and says why."""
        if heard.event is Event.FAILED:
            what = f"cannot freeze {self._filesystems[heard.index]}: {explain_freeze(heard.error)}"
            self._fail(what, freeze_reason(heard.error))
        elif heard.event is Event.STUCK:
            self.is_stuck = True
            what = "writing out" if self.state is State.WRITING else "freezing"
            why = explain_stuck(self._filesystems[heard.index], heard.words)
            what = f"{what} {self._filesystems[heard.index]} does not end{why}; the others are thawed"
            self._fail(what, Reason.FREEZE_STUCK)
        elif heard.event is Event.EXPIRED:
            self._fail("the guardian thawed everything at its deadline", Reason.FREEZE_EXPIRED)
        else:
            self._fail("the guardian thawed everything because of a signal", Reason.FREEZE_LOST)
        self._enter(State.THAWING, _TURN)

    def _do_order_thaw(self, heard: Heard) -> None:
        """``TIME``: the guardian should have done so by itself."""
        if heard.event is Event.TIME:
            self._fail("the freeze lasted longer than the guardian's deadline", Reason.FREEZE_EXPIRED)
        self._witness.order(guardian.THAW)
        self._enter(State.THAWING, _TURN)

    def _do_break_off(self, heard: Heard) -> None:
        """Before or while it freezes."""
        if heard.event is Event.TIME:
            is_opening = self.state is State.OPENING
            self._fail(
                "the guardian does not answer",
                Reason.MOUNT_UNREACHABLE if is_opening else Reason.FREEZE_TIMEOUT,
            )
        else:
            self._fail("the freeze was broken off", Reason.FREEZE_BROKEN_OFF)
        if self._is_ordered:
            self._do_order_thaw(Heard(Event.THAW))
        else:  # nothing can be frozen yet
            self._witness.kill()
            self._enter(State.ENDING, _END)

    def _do_replace(self, heard: Heard) -> None:
        """The guardian was killed."""
        self._fail("the guardian was killed", Reason.GUARDIAN_LOST)
        if self._is_ordered:
            self._do_rescue(heard)
        elif not self._witness.has_family:
            self._close()
        else:
            self._do_break_off(heard)

    def _do_rescue(self, heard: Heard) -> None:
        if self._witness.has_rescue:
            # It says each second what would not thaw; one that says nothing is stopped, and another one is not.
            self._silences += heard.event is Event.TIME
            if self._silences >= _SILENCES:
                self._witness.kill_rescue()
        else:
            self._silences = 0
            try:
                self._witness.rescue(self._mounts)
            except OSError as problem:  # no room for a process: tried again
                self._trouble = -1, problem.errno or errno.EAGAIN
            else:
                # What freezes meanwhile, or is killed while it freezes, makes another look necessary.
                self._is_final = self._is_complete or not self._witness.has_family
        self._enter(State.RESCUING, _RETRY)

    def _do_await_end(self, heard: Heard) -> None:
        """All is thawed, by the guardian (whose child has nothing to freeze any more) or by the rescue."""
        if heard.event is Event.CLEAR:
            self._is_final = True
        if not self._witness.has_family and not self._witness.has_rescue:
            self._do_end(heard)
        else:
            # A child without a guardian thaws and ends by itself; killed in a freeze it could do neither.
            is_slow = heard.event is Event.CLEAR or not self._is_final
            self._enter(State.ENDING, _END if is_slow else 0.0)

    def _do_kill(self, _: Heard) -> None:
        """Who is stopped, or waits in the kernel, must not wake up and freeze or thaw for the next backup."""
        self._witness.kill()
        self._enter(State.ENDING, _END)

    def _do_end(self, heard: Heard) -> None:
        """The end of one of those who are left to end."""
        if self._witness.has_family or self._witness.has_rescue:
            return
        if self._is_final or not self._is_ordered:
            self._close()
        else:
            # A freeze that was under way when its process was killed may have been completed by the kernel.
            self._do_rescue(heard)

    def _do_note(self, heard: Heard) -> None:
        """For the record, by one that did not know yet that the freeze is over."""
        if heard.descriptor >= 0:
            os.close(heard.descriptor)
        elif heard.event is Event.HELD:
            self._trouble = heard.index, heard.error
            self._silences = 0
        elif heard.event in (Event.FOREIGN, Event.LEFT_OUT):
            os.close(self._mounts.pop(heard.index))
        elif heard.event is Event.FROZEN:
            self._note_complete()
        elif heard.event is Event.STUCK:
            self.is_stuck = True

    # ------------------------------------------------------------------------- inside

    def _freeze_if_opened(self) -> None:
        if self._answered == len(self._filesystems):
            self._is_ordered = True
            if self._on_guard is not None:
                self._witness.lease = self._on_guard(self._witness.lifeline)
            self._enter(State.WRITING, self._timeouts.freeze + _SLACK)
            self._witness.order(guardian.FREEZE)

    def _note_complete(self) -> None:
        self._is_complete = True
        self.frozen = [self._filesystems[index] for index in self._mounts]

    def _fail(self, why: str, reason: Reason) -> None:
        if self.failure is None:
            self.failure = EffectError(why, reason=reason)

    def _close(self) -> None:
        """All is known to be thawed, and nobody is left who could change that."""
        self.state = State.CLEAR
        self._until = 0.0
        close_all(self._mounts)
        self._witness.close()

    def __del__(self) -> None:
        # Whoever forgets a freeze has it thawed: the guardian's socket ends.
        witness = getattr(self, "_witness", None)
        if witness is not None and not witness.is_closed:
            self._close()


Step = Callable[[GuardedFreeze, Heard], None]


def _rows(state: State, **steps: Step) -> dict[tuple[State, Event], Step]:
    return {(state, Event[name]): step for name, step in steps.items()}


_G = GuardedFreeze
STEPS: Final[dict[tuple[State, Event], Step]] = {
    **_rows(
        State.STARTING,
        READY=_G._do_open,
        TIME=_G._do_start_again,
        DEAD=_G._do_note,
        GONE=_G._do_next_way,
        THAW=_G._do_break_off,
    ),
    **_rows(
        State.LEAVING,
        TIME=_G._do_start_again,
        DEAD=_G._do_note,
        GONE=_G._do_next_way,
        THAW=_G._do_break_off,
    ),
    **_rows(
        State.OPENING,
        OPENED=_G._do_keep,
        TIME=_G._do_break_off,
        DEAD=_G._do_replace,
        GONE=_G._do_replace,
        THAW=_G._do_break_off,
    ),
    **_rows(
        State.WRITING,
        FREEZING=_G._do_go_on,
        FAILED=_G._do_hear_why,
        STUCK=_G._do_hear_why,
        TERMINATED=_G._do_hear_why,
        TIME=_G._do_break_off,
        DEAD=_G._do_replace,
        GONE=_G._do_replace,
        THAW=_G._do_break_off,
    ),
    **_rows(
        State.FREEZING,
        FOREIGN=_G._do_leave_out,
        LEFT_OUT=_G._do_leave_out,
        FROZEN=_G._do_hold,
        FAILED=_G._do_hear_why,
        STUCK=_G._do_hear_why,
        TERMINATED=_G._do_hear_why,
        TIME=_G._do_break_off,
        DEAD=_G._do_replace,
        GONE=_G._do_replace,
        THAW=_G._do_break_off,
    ),
    **_rows(
        State.FROZEN,
        EXPIRED=_G._do_hear_why,
        TERMINATED=_G._do_hear_why,
        TIME=_G._do_order_thaw,
        DEAD=_G._do_replace,
        GONE=_G._do_replace,
        THAW=_G._do_order_thaw,
    ),
    **_rows(
        State.THAWING,
        CLEAR=_G._do_await_end,
        TIME=_G._do_rescue,
        DEAD=_G._do_rescue,
        GONE=_G._do_rescue,
    ),
    **_rows(
        State.RESCUING,
        CLEAR=_G._do_await_end,
        RESCUED=_G._do_await_end,
        FELL=_G._do_rescue,
        TIME=_G._do_rescue,
    ),
    **_rows(
        State.ENDING,
        CLEAR=_G._do_await_end,
        RESCUED=_G._do_end,
        FELL=_G._do_end,
        TIME=_G._do_kill,
        GONE=_G._do_end,
    ),
}


def table() -> str:
    """The steps, for people: what is not said here is only noted, or breaks the freeze off before it is complete."""
    lines = ["state     event             step", "--------  ----------------  -----------"]
    for (state, event), step in STEPS.items():
        what = step.__name__.removeprefix("_do_").replace("_", " ")
        lines.append(f"{state.value:8}  {event.name.lower():16}  {what}")
    return "\n".join(lines)
