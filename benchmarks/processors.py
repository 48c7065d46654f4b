# SPDX-License-Identifier: Apache-2.0
"""Guest and host on processors of their own, as virtual machines have them, and undisturbed by what else runs here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_FOUND = sorted(os.sched_getaffinity(0))
GUEST, HOST = _FOUND[0], _FOUND[-1]  # the same one where there is only one


def favour(pid: int, processor: int = GUEST) -> None:
    """That process (0: this thread), and what it starts from now on, there, and before all other programs.

    Else an answer would wait for their turns, and the longer the more often its sides sleep.  Without root it is only
    put there.
    """
    os.sched_setaffinity(pid, {processor})
    with suppress(PermissionError):
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))


@contextmanager
def favoured(processor: int) -> Iterator[None]:
    """This thread, for a while, and for good the processes that it starts meanwhile."""
    before = os.sched_getaffinity(0)
    favour(0, processor)
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, before)
