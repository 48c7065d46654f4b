# SPDX-License-Identifier: Apache-2.0
"""Numbers about one service's exchanges, in constant memory."""

from __future__ import annotations

import math
from typing import Final

_STEPS: Final = 8  # buckets per doubling: a percentile is right to 9 %
_BUCKETS: Final = 32 * _STEPS  # from 1 us to over an hour


class LatencyHistogram:
    """Exchanges, payload bytes both ways, and a histogram of the guest's answer times."""

    def __init__(self) -> None:
        self.exchanges = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.seconds = 0.0  # in which an answer was waited for
        self._buckets = [0] * _BUCKETS

    def record(self, sent: int, received: int, seconds: float) -> None:
        """Count one answered request."""
        self.exchanges += 1
        self.bytes_sent += sent
        self.bytes_received += received
        self.seconds += seconds
        bucket = int(math.log2(max(seconds * 1e6, 1.0)) * _STEPS)
        self._buckets[min(bucket, _BUCKETS - 1)] += 1

    def percentile(self, fraction: float) -> float | None:
        """Seconds within which this part of the answers came; None before the first."""
        if not self.exchanges:
            return None
        left = max(1, math.ceil(fraction * self.exchanges))
        for bucket, count in enumerate(self._buckets):
            left -= count
            if left <= 0:
                return float(2 ** ((bucket + 1) / _STEPS) / 1e6)
        raise AssertionError("the buckets hold every exchange")

    @property
    def median(self) -> float | None:
        """Seconds; None before the first answer."""
        return self.percentile(0.5)

    @property
    def p99(self) -> float | None:
        """Seconds; None before the first answer."""
        return self.percentile(0.99)

    def as_dict(self) -> dict[str, int | float | None]:
        """All of it as plain data; times in seconds."""
        return {
            "exchanges": self.exchanges,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "bytes_per_second": (self.bytes_sent + self.bytes_received) / self.seconds
            if self.seconds
            else None,
            "median_seconds": self.median,
            "p99_seconds": self.p99,
        }
