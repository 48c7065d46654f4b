# SPDX-License-Identifier: Apache-2.0
"""Samples of the host's time for a program that keeps this machine's clock: chrony's SOCK, or NTP's shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hvring.guest.rehearsal import rehearse


@dataclass(frozen=True, slots=True)
class FeedSample:
    """When this machine's clock was ``at_ns`` (nanoseconds since 1970), the host's was ``offset_ns`` ahead of it.

    Right to ``uncertainty_ns`` either way.  ``leap``: 0, or 1 or 2 for a minute of 61 or 59 seconds to come.
    """

    at_ns: int
    offset_ns: int
    uncertainty_ns: int
    leap: int = 0


class TimeFeed(Protocol):
    """Takes samples to whoever keeps the clock."""

    def give(self, sample: FeedSample) -> None:
        """Without waiting; EffectError when nobody takes it."""
        ...


class RehearsedFeed:
    """Records in ``samples`` what would have been given lately."""

    def __init__(self) -> None:
        self.samples: list[FeedSample] = []

    def give(self, sample: FeedSample) -> None:
        """Record it."""
        rehearse(self.samples, sample, f"give a sample of {sample.offset_ns} ns")


def feed(to: str) -> TimeFeed:
    """``sock:PATH``, a socket that chronyd made, or ``shm:UNIT``; touched when something is given.  ValueError else."""
    kind, _, where = to.partition(":")
    if kind == "sock":
        from hvring.guest.time_feed.chrony_sock import ChronySock

        return ChronySock(where)
    if kind == "shm":
        from hvring.guest.time_feed.ntp_shm import NtpShm

        if not (where.isascii() and where.isdecimal()):
            raise ValueError(f"{where!r} is no unit of NTP's shared memory")
        return NtpShm(int(where))
    raise ValueError(f"{to!r} is neither sock:PATH nor shm:UNIT")
