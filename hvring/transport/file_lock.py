# SPDX-License-Identifier: Apache-2.0
"""A lock of a file that is waited for, but not for ever."""

from __future__ import annotations

import fcntl
import time
from typing import Final

_PAUSE: Final = 0.005  # seconds; the kernel has no lock with a time limit


def lock(descriptor: int, timeout: float) -> bool:
    """Lock the open file for this descriptor alone; False if others still had it after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
        time.sleep(_PAUSE)
