# SPDX-License-Identifier: Apache-2.0
"""What can this machine do at best: calls, a cache line between processors, signals?"""

from __future__ import annotations

import os
from typing import Any

from limits import Limits, two_calls
from measure import in_turns, timed


def test_a_line_there_and_back(benchmark: Any, limits: Limits) -> None:
    count = 20_000 if benchmark.enabled else 500
    in_turns(benchmark, {"line": limits.line(count)}, unit="ns/round trip, median", rounds=15)


def test_calls(benchmark: Any) -> None:
    """A signal costs a system call: as much as many packets."""
    bell = os.eventfd(0)
    in_turns(
        benchmark,
        {
            "two empty calls": two_calls(b"", b""),
            "system call": timed(os.getppid, 5_000),
            "signal of an eventfd": timed(lambda: os.eventfd_write(bell, 1), 5_000),
        },
        unit="ns",
    )
    os.close(bell)
