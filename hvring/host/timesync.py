# SPDX-License-Identifier: Apache-2.0
"""Tell the guest what time it is (PROTOCOL §4.2)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hvring.errors import MessageError
from hvring.host.errors import GuestStatusError, HostError
from hvring.host.session import Session
from hvring.ic import SampleFlag, TimeSampleV3, TimeSampleV4, Version
from hvring.ic.timesync import from_unix_ns

_LOOKS: Final = 10
_CLOSE: Final = 100  # units of the counter, 10 microseconds


@dataclass(frozen=True, slots=True)
class TimeExchange:
    """One time that the guest was told: nanoseconds since 1970, and how many seconds its answer took."""

    host_time_ns: int
    sync: bool
    seconds: float


def _reference() -> int:
    return time.monotonic_ns() // 100


class TimesyncVerbs:
    """The administrator's verbs for time synchronization.

    ``skew_ns`` is added to the real time, to see what a guest makes of a host in another time.
    ``reference`` stands for the guest's reference counter in units of 100 ns, which a host without a
    hypervisor cannot read.
    """

    def __init__(self, session: Session) -> None:
        self.skew_ns = 0
        self.reference: Callable[[], int] = _reference
        self.exchanges = 0
        self.last: TimeExchange | None = None
        self._session = session
        session.background = self._keep_telling

    async def sample(self) -> TimeExchange:
        """Tell the time as a hint. Raises GuestStatusError when the answer has a status."""
        return await self._tell(SampleFlag.SAMPLE)

    async def sync(self) -> TimeExchange:
        """Tell the time and ask for the clock to be set."""
        return await self._tell(SampleFlag.SYNC)

    async def _tell(self, flag: SampleFlag) -> TimeExchange:
        request = "SYNC" if flag is SampleFlag.SYNC else "SAMPLE"
        old = self._session.require().version < Version(4, 0)
        now, reference = self._look()
        parent = from_unix_ns(now)
        body = (TimeSampleV3(parent, flag) if old else TimeSampleV4(parent, reference, flag)).encode()
        began = time.perf_counter()
        reply = await self._session.ask(request, body)
        if reply.status:
            raise GuestStatusError("timesync", request, reply.status)
        self.exchanges += 1
        self.last = TimeExchange(now, flag is SampleFlag.SYNC, time.perf_counter() - began)
        return self.last

    def _look(self) -> tuple[int, int]:
        """The time, and the counter of that moment: both anew when something came between them."""
        now = before = after = 0
        for _ in range(_LOOKS):
            before, now, after = self.reference(), time.time_ns() + self.skew_ns, self.reference()
            if after - before <= _CLOSE:
                break
        return now, (before + after) // 2

    async def _keep_telling(self) -> None:
        """SYNC after negotiation, then a SAMPLE some time after each answer."""
        flag = SampleFlag.SYNC
        while True:
            try:
                await self._tell(flag)
                self._session.worked("telling the time")
            except (HostError, MessageError) as error:  # the next sample may do better
                self._session.failed("telling the time", error)
            flag = SampleFlag.SAMPLE
            await asyncio.sleep(self._session.timing.timesync_interval)
