# SPDX-License-Identifier: Apache-2.0
"""The wall clock of this machine and Hyper-V's reference counter (PROTOCOL §4.2)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final, Protocol

from hvring.errors import EffectError
from hvring.guest.regular import read_text
from hvring.guest.rehearsal import rehearse
from hvring.reasons import Reason

#: HV_X64_MSR_TIME_REF_COUNT: 100 ns units since the VM was made.
TIME_REF_COUNT: Final = 0x40000020


class Clock(Protocol):
    """What the time service needs."""

    def now(self) -> int:
        """Nanoseconds since 1970, UTC."""
        ...

    def reference(self) -> int | None:
        """The reference counter in 100 ns units; None where it cannot be read."""
        ...

    def set(self, unix_ns: int) -> None:
        """Set the clock; raise EffectError if that is not possible."""
        ...


@dataclass(frozen=True, slots=True)
class Steady:
    """Seconds that nobody sets or slews: ``raw`` since some moment, but for those that it was ``suspended``."""

    raw: float
    suspended: float


def steady() -> Steady:
    """Of this machine, now."""
    suspended = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return Steady(time.clock_gettime(time.CLOCK_MONOTONIC_RAW), suspended / 1e9)


class SystemClock:
    """The real clock. The counter is read from an MSR as root, on x86 under Hyper-V only."""

    def __init__(
        self,
        *,
        msr: str = "/dev/cpu/0/msr",
        clocksources: str = "/sys/devices/system/clocksource/clocksource0/available_clocksource",
    ) -> None:
        self._msr = msr
        self._clocksources = clocksources
        self._has_counter: bool | None = None

    def now(self) -> int:
        """Nanoseconds since 1970, UTC."""
        return time.time_ns()

    def reference(self) -> int | None:
        """The reference counter in 100 ns units; None where it cannot be read."""
        if self._has_counter is None:
            self._has_counter = self._counter_exists()
        if not self._has_counter:
            return None
        try:
            fd = os.open(self._msr, os.O_RDONLY | os.O_CLOEXEC)
            try:
                raw = os.pread(fd, 8, TIME_REF_COUNT)
            finally:
                os.close(fd)
        except OSError:
            return None
        return int.from_bytes(raw, "little") if len(raw) == 8 else None

    def set(self, unix_ns: int) -> None:
        """Set CLOCK_REALTIME; EffectError without the right to, or for a time that it cannot hold."""
        try:
            time.clock_settime_ns(time.CLOCK_REALTIME, unix_ns)
        except (OSError, OverflowError) as problem:
            text = f"cannot set the clock: {problem}"
            raise EffectError(text, reason=Reason.CLOCK_NOT_SET) from problem

    def _counter_exists(self) -> bool:
        # On another hypervisor the same MSR number may mean something else. The kernel offers a
        # Hyper-V clock source exactly where the counter is there.
        return "hyperv_clocksource" in read_text(self._clocksources)


class RehearsedClock:
    """Shows the real time; records in ``settings`` what it would have been set to lately."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = SystemClock() if clock is None else clock
        self.settings: list[int] = []

    def now(self) -> int:
        """Nanoseconds since 1970, UTC."""
        return self._clock.now()

    def reference(self) -> int | None:
        """The real reference counter."""
        return self._clock.reference()

    def set(self, unix_ns: int) -> None:
        """Record the time."""
        rehearse(self.settings, unix_ns, f"set the clock to {unix_ns} ns")
