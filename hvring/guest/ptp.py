# SPDX-License-Identifier: Apache-2.0
"""The host's time where the kernel has time synchronization: its PTP clock, and how far this machine is from it.

The kernel's driver keeps the host's newest message and goes on from there by the reference counter (PROTOCOL §4.2).
Nothing here sets a clock.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hvring.errors import EffectError
from hvring.guest.regular import read_text
from hvring.reasons import Reason

HYPERV: Final = "hyperv"  # as hv_utils calls its clock
STALE_AFTER: Final = 600.0  # seconds; the kernel gives no time that was told longer ago
LINK: Final = "ptp_hyperv"  # udev's own name for it, where numbers may change

#: What the clock shows before the first message: 1601, in nanoseconds since 1970 and wrapped around in 64 bits.
_NEVER: Final = -11644473600 * 10**9 % 2**64
_YEAR: Final = 366 * 86400 * 10**9


class NoSamplesError(EffectError):
    """The clock is there, and the host does not tell the time (any more)."""


@dataclass(frozen=True, slots=True)
class PtpClock:
    """One PTP clock of this machine: ``ptp0``, ``hyperv``, ``/dev/ptp0``."""

    name: str
    title: str
    node: str


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a clock, in nanoseconds: clock minus CLOCK_REALTIME, right to ``uncertainty_ns`` either way."""

    offset_ns: int
    uncertainty_ns: int


def ptp_clocks(sysfs: str = "/sys", dev: str = "/dev") -> list[PtpClock]:
    """All PTP clocks, in the order of their numbers; those of network cards and of other hypervisors, too."""
    directory = f"{sysfs}/class/ptp"
    try:
        found = [name for name in os.listdir(directory) if name.removeprefix("ptp").isdecimal()]
    except OSError:
        return []
    names = sorted(found, key=lambda name: int(name.removeprefix("ptp")))
    return [
        PtpClock(name, read_text(f"{directory}/{name}/clock_name").strip(), f"{dev}/{name}") for name in names
    ]


def hyperv_clocks(sysfs: str = "/sys", dev: str = "/dev") -> list[PtpClock]:
    """The kernel's clock of Hyper-V; more than one only where something went wrong."""
    return [clock for clock in ptp_clocks(sysfs, dev) if clock.title == HYPERV]


def read_clock(
    node: str,
    *,
    looks: int = 20,
    show: Callable[[int], int] = time.clock_gettime_ns,
    now: Callable[[], int] = time.time_ns,
) -> Reading:
    """The best of some looks at the clock behind ``node``; raises NoSamplesError, or EffectError with what is wrong.

    ``show`` gives the nanoseconds since 1970 of a kernel's clock id, ``now`` those of this machine; each look is
    between two of the latter.  ValueError for fewer than one look.
    """
    if looks < 1:
        raise ValueError("a clock is read by at least one look")
    try:
        # Only read: whoever may open it for writing could set other clocks of this kind.
        descriptor = os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as problem:
        raise EffectError(
            f"cannot open {node}: {problem.strerror}", reason=Reason.DEVICE_UNUSABLE
        ) from problem
    try:
        return min((_look(_clock_id(descriptor), show, now) for _ in range(looks)), key=_uncertainty)
    except OSError as problem:
        if problem.errno == errno.ESTALE:
            text = f"the host has not told the time for more than {STALE_AFTER:g} s"
            raise NoSamplesError(text) from problem
        raise EffectError(
            f"cannot read {node}: {problem.strerror}", reason=Reason.DEVICE_UNUSABLE
        ) from problem
    finally:
        os.close(descriptor)


def _look(clock_id: int, show: Callable[[int], int], now: Callable[[], int]) -> Reading:
    before = now()
    shown = show(clock_id)
    after = now()
    if _NEVER <= shown < _NEVER + _YEAR:
        raise NoSamplesError("the host has not told the time yet")
    # The wall clock may be set in between, back too: such a look is a bad one, and not the best of several.
    return Reading(shown - (before + after) // 2, (abs(after - before) + 1) // 2)


def _uncertainty(reading: Reading) -> int:
    return reading.uncertainty_ns


def _clock_id(descriptor: int) -> int:
    """The kernel's number for the clock behind an open device (CLOCKFD)."""
    return (~descriptor << 3) | 3
