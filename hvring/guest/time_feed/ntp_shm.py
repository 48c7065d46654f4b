# SPDX-License-Identifier: Apache-2.0
"""NTP's shared memory (driver 28), which chrony (`refclock SHM`) and ntpd read: a segment of System V a unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hvring.errors import EffectError
from hvring.guest.time_feed import FeedSample
from hvring.reasons import Reason

if TYPE_CHECKING:
    from hvring.guest._ntp import Segment

KEY: Final = 0x4E545030  # "NTP0", of unit 0
_UNITS: Final = 256
_COARSEST: Final = 0  # binary logarithm of seconds
_FINEST: Final = -30


class NtpShm:
    """The newest sample is in the segment until the next; whether somebody reads it is not known."""

    def __init__(self, unit: int) -> None:
        """ValueError for a unit that there is not."""
        if not 0 <= unit < _UNITS:
            raise ValueError(f"{unit} is no unit of NTP's shared memory: there are 0 to {_UNITS - 1}")
        self._unit = unit
        self._segment: Segment | None = None

    def give(self, sample: FeedSample) -> None:
        """EffectError when the memory cannot be had, or for a time that it cannot hold."""
        try:
            if self._segment is None:
                from hvring.guest._ntp import Segment

                self._segment = Segment(KEY + self._unit)
            self._segment.publish(
                sample.at_ns + sample.offset_ns, sample.at_ns, sample.leap, precision(sample.uncertainty_ns)
            )
        except (OSError, ValueError, OverflowError) as problem:
            text = f"unit {self._unit} of NTP's shared memory takes no sample: {problem}"
            raise EffectError(text, reason=Reason.FEED_UNREACHABLE) from problem


def precision(uncertainty_ns: int) -> int:
    """The power of two in seconds that is not below ``uncertainty_ns``."""
    # 2^-30 s is 0.93 ns: bits of the number of such units, rounded up
    units = -(-uncertainty_ns * 2**30 // 10**9)
    return max(_FINEST, min(_COARSEST, _FINEST + max(0, units - 1).bit_length()))
