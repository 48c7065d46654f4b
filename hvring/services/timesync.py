# SPDX-License-Identifier: Apache-2.0
"""Time synchronization: measure always, set the clock only when told to (PROTOCOL §4.2)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvring.ic.frame import MessageType, Request, Version
from hvring.ic.negotiate import Negotiated
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
from hvring.services.intake import Intake
from hvring.services.service import Answer, Counters, Reply

if TYPE_CHECKING:
    from hvring.guest.clock import Clock


@dataclass(frozen=True, slots=True)
class Measurement:
    """One look at the host's clock."""

    offset_ns: int  # host minus guest
    flags: SampleFlag  # 0 for a probe
    leap: int  # NTP's leap indicator and stratum, as the host gave them
    stratum: int
    taken: float  # of the monotonic clock, seconds


class TimeSync:
    """Measures how far the guest's clock is from the host's; ``measurement`` is the newest.

    ``set_clock``: whether SYNC sets the clock.  Off by default: setting it fights NTP (PROTOCOL §6.6).
    """

    name = "timesync"

    def __init__(
        self, clock: Clock, *, set_clock: bool = False, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.measurement: Measurement | None = None
        self._clock = clock
        self._set_clock = set_clock
        self._monotonic = monotonic
        self._intake = Intake(
            MessageType.TIMESYNC, FRAMEWORKS, VERSIONS, minimum=V4_LINUX_SIZE, answer_unknown=True
        )

    @property
    def counters(self) -> Counters:
        return self._intake.counters

    @property
    def negotiated(self) -> Negotiated | None:
        return self._intake.negotiated

    @property
    def last_error(self) -> Exception | None:
        return self._intake.last_error

    @property
    def age(self) -> float | None:
        """Seconds since the newest measurement."""
        return None if self.measurement is None else self._monotonic() - self.measurement.taken

    def receive(self, payload: bytes) -> Answer:
        return self._intake.receive(payload, self._sample)

    def reset(self) -> None:
        self._intake.negotiated = None
        self.measurement = None  # the VM may have been moved or restored meanwhile

    def deadline(self) -> float | None:
        return None

    def tick(self) -> None:
        pass

    def _sample(self, request: Request) -> Reply | None:
        version = request.version if self.negotiated is None else self.negotiated.version
        sample: TimeSampleV3 | TimeSampleV4
        if version >= Version(4, 0):
            sample = TimeSampleV4.decode(request.body)
        elif len(request.body) >= V3_LINUX_SIZE:
            sample = TimeSampleV3.decode(request.body)
        else:
            self.counters.short += 1
            return None
        self._intake.attempt(lambda: self._take(sample))
        return Reply(request.answer())  # an echo in any case: the host wants to hear that it arrived

    def _take(self, sample: TimeSampleV3 | TimeSampleV4) -> None:
        host_now = to_unix_ns(sample.parent)
        leap = stratum = 0
        if isinstance(sample, TimeSampleV4):
            leap, stratum = sample.leap, sample.stratum
            counter = self._clock.reference()
            if counter is not None:
                # The counter can be behind the host's view of it after a restore or a move.
                host_now += max(0, counter - sample.reference) * 100
        flags = SampleFlag(sample.flags & (SampleFlag.SYNC | SampleFlag.SAMPLE))
        offset = host_now - self._clock.now()
        self.measurement = Measurement(offset, flags, leap, stratum, self._monotonic())
        if self._set_clock and flags & SampleFlag.SYNC:
            self._clock.set(host_now)
