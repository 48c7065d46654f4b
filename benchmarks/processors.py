# SPDX-License-Identifier: Apache-2.0
"""Guest and host beside each other, as in virtual machines, and undisturbed by what else runs here.

The host has a processor, and its way there. The guest may use all of them, as helper processes would, and so that what
looks before it sleeps does it here, too (alone it would not); but whoever the host wakes finds only another one free.
Both go before all other programs: else an answer would wait for their turns, and the longer the more often its sides
sleep. Without root, or with $HVRING_BENCH_SHARE=1 in long runs beside others' work, they are only put on processors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

GUEST = os.sched_getaffinity(0)
HOST = {max(GUEST)}
HOST_PRIORITY, GUEST_PRIORITY = 2, 1


def favour(pid: int, processors: set[int] = GUEST) -> None:
    """That process (0: this thread), and what it starts from now on, there: by default the guest's."""
    os.sched_setaffinity(pid, processors)
    if os.environ.get("HVRING_BENCH_SHARE"):
        return
    priority = HOST_PRIORITY if processors == HOST else GUEST_PRIORITY
    with suppress(PermissionError):
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(priority))


@contextmanager
def favoured(processors: set[int]) -> Iterator[None]:
    """This thread, for a while, and for good the processes that it starts meanwhile."""
    before = os.sched_getaffinity(0)
    favour(0, processors)
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, before)
