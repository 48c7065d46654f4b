# SPDX-License-Identifier: Apache-2.0
"""How often the host speaks and how long it waits, in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """The defaults are those of real hosts as far as they are known (PROTOCOL §3.5, §4.2, §4.3).

    ``answer`` is what a guest has for any answer: an answer that comes later, or not at all, is a violation.
    ``freeze`` is the same for a FREEZE (Linux' driver itself allows 15 minutes).
    """

    answer: float = 30.0
    negotiation: float = 60.0  # a Linux guest answers for KVP once its daemon runs
    freeze: float = 60.0
    open_request: float = 10.0  # from connecting to the first datagram
    heartbeat_interval: float = 2.0
    heartbeat_latency: float = 1.0
    heartbeat_misses: int = 2  # in a row, and contact is lost
    timesync_interval: float = 5.0  # from one answer to the next sample
