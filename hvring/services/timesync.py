# SPDX-License-Identifier: Apache-2.0
"""Time synchronization: measure always, give the time on or set the clock only when told to (PROTOCOL §4.2).

The host's time is as old as its message.  Hyper-V's reference counter tells how old that is; without it the machine
seems to be less behind than it is, by as long as the message lay in the ring: until this service was scheduled, and
never longer than since the message before, for a host that waits for each answer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from hvring.errors import EffectError
from hvring.events import EventKind
from hvring.guest.clock import Steady, steady
from hvring.ic.frame import MessageType, Request, Version
from hvring.ic.timesync import (
    FRAMEWORKS,
    V3_LINUX_SIZE,
    V4_LINUX_SIZE,
    VERSIONS,
    SampleFlag,
    TimeSampleV3,
    TimeSampleV4,
    to_unix_ns,
)
from hvring.reasons import Reason
from hvring.services.base import IntegrationService, Response
from hvring.services.pause import THRESHOLD, Look, Pause, PauseWatch

if TYPE_CHECKING:
    from hvring.guest.clock import Clock
    from hvring.guest.disciplines import Discipline
    from hvring.guest.time_feed import TimeFeed

Sample = TimeSampleV3 | TimeSampleV4
TimeMode = Literal["observe", "feed", "step"]
MODES: Final[tuple[TimeMode, ...]] = get_args(TimeMode)

_UNIT: Final = 100  # nanoseconds, of the reference counter
_LEAPS: Final = (0, 1, 2)  # of NTP's indicator; 3 is a clock that nobody keeps, and more is none
_USE: Final = "the use of the host's time"
_REMEMBERED: Final = 31  # offsets
_WITNESSES: Final = {"host": "host's time", "kernel": "kernel's clocks", "counter": "reference counter"}


def nobody() -> Discipline | None:
    """Of a clock that no other program keeps."""
    return None


@dataclass(frozen=True, slots=True)
class Measurement:
    """One look at the host's clock.

    ``uncertainty_ns``: with ``is_corrected`` the reference counter told how old the host's time was, and the offset is
    right to so many nanoseconds either way; without, the host may be further ahead by so much, but not less.
    """

    offset_ns: int  # host minus guest
    flags: SampleFlag  # 0 for a probe
    leap: int  # NTP's leap indicator and stratum, as the host gave them
    stratum: int
    taken: float  # of the monotonic clock, seconds
    uncertainty_ns: int
    is_corrected: bool


class TimeSync(IntegrationService[Sample]):
    """Measures how far the guest's clock is from the host's; ``measurement`` is the newest.  ``mode`` is what else:

    ``observe``: nothing.  ``feed``: what is known to ``feed_uncertainty`` seconds goes to ``feed``, once some messages
    in a row tell the same time.  ``step``: SYNC sets the clock (PROTOCOL §6.6), as does a SAMPLE ``implicit_sync``
    seconds behind the host (None: never) if this machine was paused and no SYNC came (:mod:`hvring.services.pause`);
    by ``step_limit`` seconds at most, and where ``discipline`` names who keeps the clock only after a pause.

    ValueError for a mode that there is not, without a feed for ``feed``, and for times that are none above 0.
    """

    name = "timesync"
    kind = MessageType.TIMESYNC
    frameworks = FRAMEWORKS
    versions = VERSIONS
    answers_unknown = True
    in_place = True

    def __init__(
        self,
        clock: Clock,
        *,
        mode: TimeMode = "observe",
        feed: TimeFeed | None = None,
        feed_uncertainty: float = 0.1,
        implicit_sync: float | None = THRESHOLD,
        step_limit: float | None = None,
        discipline: Callable[[], Discipline | None] = nobody,
        monotonic: Callable[[], float] = time.monotonic,
        steady: Callable[[], Steady] = steady,
    ) -> None:
        super().__init__()
        if mode not in MODES or (mode == "feed" and feed is None):
            raise ValueError(f"there is no mode {mode!r}, or nothing to feed")
        for seconds in (feed_uncertainty, step_limit):
            if seconds is not None and not seconds > 0:
                raise ValueError(f"a limit of {seconds} seconds is no time above 0")
        self.mode = mode
        self.measurement: Measurement | None = None
        self._offsets: deque[int] = deque(maxlen=_REMEMBERED)
        self.pauses = 0  # that were seen
        self.fed = 0  # samples that were given on
        self.held_back = 0  # and those that were not, since they were unfit or did not go with those before
        self._clock = clock
        self._feed = feed
        self._feed_uncertainty = feed_uncertainty
        self._step_limit = step_limit
        self._discipline = discipline
        self._monotonic = monotonic
        self._steady = steady
        self._pause = PauseWatch(implicit_sync)
        self._before = monotonic()  # when the last message came, or else the channel was opened
        self._message_before: tuple[int, int] | None = None  # the host's time, and how old it was at most
        self._refusal: Reason | None = None  # why the newest was not used, to tell each once

    @property
    def age(self) -> float | None:
        """Seconds since the newest measurement."""
        return None if self.measurement is None else self._monotonic() - self.measurement.taken

    def facts(self) -> dict[str, str | int | float | bool | None]:
        """What is known and done, by names that programs can rely on; None: nothing was measured.

        ``bias_ns``: the middle of the newest offsets, since the last pause or setting: how far the host is from what
        somebody here keeps right.
        """
        newest = self.measurement
        return {
            "mode": self.mode,
            "offset_ns": None if newest is None else newest.offset_ns,
            "uncertainty_ns": None if newest is None else newest.uncertainty_ns,
            "delay_known": None if newest is None else newest.is_corrected,
            "bias_ns": self._bias(newest),
            "age": self.age,
            "leap": None if newest is None else newest.leap,
            "stratum": None if newest is None else newest.stratum,
            "pauses": self.pauses,
            "fed": self.fed,
            "held_back": self.held_back,
            "refusal": None if self._refusal is None else self._refusal.value,
        }

    def _bias(self, newest: Measurement | None) -> int | None:
        if not self._offsets:
            return None if newest is None else newest.offset_ns
        return sorted(self._offsets)[len(self._offsets) // 2]

    def adopt(self, fresh: TimeSync) -> None:
        self.mode, self._clock, self._discipline = fresh.mode, fresh._clock, fresh._discipline
        self._feed, self._feed_uncertainty = fresh._feed, fresh._feed_uncertainty
        self._step_limit, self._refusal = fresh._step_limit, None
        self._pause.adopt(fresh._pause)

    def reset(self) -> None:
        super().reset()
        self.measurement = None  # the VM may have been moved or restored meanwhile
        self._before, self._message_before = self._monotonic(), None
        self._offsets.clear()
        self._pause.reset()

    def least(self, request: Request) -> int:
        return V4_LINUX_SIZE if self._is_v4(request) else V3_LINUX_SIZE

    def decode(self, request: Request) -> Sample:
        return (TimeSampleV4 if self._is_v4(request) else TimeSampleV3).decode(request.body)

    def handle(self, message: Sample) -> Response:
        self.attempt("time sample", lambda: self._take(message))
        return Response()  # an echo in any case: the host wants to hear that it arrived

    def _is_v4(self, request: Request) -> bool:
        version = request.version if self.negotiated is None else self.negotiated.version
        return version >= Version(4, 0)

    def _take(self, sample: Sample) -> None:
        now = self._clock.now()
        counter = self._clock.reference() if isinstance(sample, TimeSampleV4) else None
        after = self._clock.now()
        taken, steady = self._monotonic(), self._steady()
        host_now = to_unix_ns(sample.parent)
        delay = _delay(sample, counter)
        if delay is None:
            now, uncertainty = after, self._longest_wait(host_now, taken)
        else:
            host_now += delay
            now += (after - now) // 2  # the counter was read between these two
            uncertainty = abs(after - now) + _UNIT
        self._before = taken
        self._message_before = (host_now, uncertainty) if delay is None else (host_now, 0)
        leap, stratum = (sample.leap, sample.stratum) if isinstance(sample, TimeSampleV4) else (0, 0)
        flags = SampleFlag(sample.flags & (SampleFlag.SYNC | SampleFlag.SAMPLE))
        newest = Measurement(host_now - now, flags, leap, stratum, taken, uncertainty, delay is not None)
        self.measurement = newest
        look = Look(
            host_now,
            newest.offset_ns,
            steady.raw,
            uncertainty,
            steady.suspended,
            None if counter is None else counter * _UNIT / 1e9,
        )
        pause = self._pause.see(look)
        if pause is not None:
            self._offsets.clear()
        self._offsets.append(newest.offset_ns)
        if pause is not None:
            self._tell_of_pause(pause)
        if self.mode == "step":
            self._set_if_due(look, flags)
        elif self.mode == "feed":
            self._feed_if_fit(newest, now)

    def _longest_wait(self, host_ns: int, taken: float) -> int:
        """Nanoseconds that a message lay in the ring at most, where nothing tells."""
        since = max(0, int((taken - self._before) * 1e9))
        if self._message_before is None:
            return since
        # One that was in the ring beside the one before it waited as long as that, but for what was between them.
        host_before, waited = self._message_before
        return max(since, waited + since - (host_ns - host_before))

    def _tell_of_pause(self, pause: Pause) -> None:
        self.pauses += 1
        how_long = "some time" if pause.seconds is None else f"{pause.seconds:.1f} s"
        self.tell(
            EventKind.PAUSED,
            f"this machine stood still for {how_long}, by the {_WITNESSES[pause.seen_by]}",
            seconds=pause.seconds,
            seen_by=pause.seen_by,
        )

    def _refuse(self, reason: Reason, words: str, **facts: str | int | float | bool | None) -> None:
        """Told once until something is used again, and counted; that a clock is kept already is nothing wrong."""
        if reason is not Reason.CLOCK_KEPT:
            self.remember(_USE, EffectError(words, reason=reason))
        if self._refusal is not reason:
            self._refusal = reason
            self.tell(EventKind.REFUSED, words, reason=reason.value, remedy=reason.remedy, **facts)

    def _is_used(self) -> None:
        self._refusal = None
        self.worked(_USE)

    # ------------------------------------------------------------------------- step

    def _set_if_due(self, look: Look, flags: SampleFlag) -> None:
        words, paused = f"the clock was set by {look.behind_ns / 1e9:+.6f} s", self._pause.paused
        if not flags & SampleFlag.SYNC:
            due = self._pause.due(look) if flags == SampleFlag.SAMPLE else None
            if due is None:
                return
            words += f": this machine stood still for {due:.1f} s, and no SYNC came"
        by = look.behind_ns / 1e9
        if self._step_limit is not None and abs(by) > self._step_limit:
            text = f"the clock is not set by {by:+.6f} s: at most {self._step_limit:g} s are allowed"
            self._refuse(Reason.STEP_TOO_LARGE, text, seconds=by, limit=self._step_limit)
            return
        # Who keeps the clock makes up for what drifts, and is only disturbed; for a pause it may need days.
        keeper = None if paused else self._discipline()
        if keeper is not None:
            text = f"the clock is not set by {by:+.6f} s: {keeper} keeps it"
            self._refuse(Reason.CLOCK_KEPT, text, seconds=by, who=str(keeper))
            return
        self._clock.set(look.host_ns)
        self._offsets.clear()
        self._is_used()
        self.tell(EventKind.CHANGED, words, seconds=by, paused=paused, sync=bool(flags & SampleFlag.SYNC))
        self._pause.settle()

    # ------------------------------------------------------------------------- feed

    def _feed_if_fit(self, newest: Measurement, at_ns: int) -> None:
        feed = self._feed
        if feed is None or not self._pause.is_coherent or not self._is_fit(newest):
            self.held_back += 1
            return
        self._is_used()
        from hvring.guest.time_feed import FeedSample  # only here, for what it costs in memory

        sample = FeedSample(at_ns, newest.offset_ns, newest.uncertainty_ns, newest.leap)
        if self.attempt("giving the host's time on", lambda: feed.give(sample)):
            self.fed += 1

    def _is_fit(self, newest: Measurement) -> bool:
        if newest.leap not in _LEAPS:
            text = "the host says that its clock is not kept"
            self._refuse(Reason.HOST_UNSYNCHRONIZED, text, leap=newest.leap)
            return False
        uncertainty = newest.uncertainty_ns / 1e9
        if uncertainty > self._feed_uncertainty:
            text = f"a sample may be wrong by {uncertainty:.6f} s, more than {self._feed_uncertainty:g} s"
            self._refuse(Reason.SAMPLE_UNCERTAIN, text, seconds=uncertainty, limit=self._feed_uncertainty)
            return False
        return True


def _delay(sample: Sample, counter: int | None) -> int | None:
    """Nanoseconds since the host looked at its clock; None where nothing tells."""
    # The counter can be behind the host's view of it after a restore or a move.
    if not isinstance(sample, TimeSampleV4) or counter is None or counter < sample.reference:
        return None
    return (counter - sample.reference) * _UNIT
