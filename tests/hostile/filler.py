# SPDX-License-Identifier: Apache-2.0
"""Fills the counter of an eventfd at a moment at random and leaves it full until who signals it got on: for ever, if
that one was between a look at the counter and a write to it.  `filler.py EVENTFD PROGRESS`, until it is killed.

PROGRESS is the descriptor of a file whose first 8 bytes the one that signals changes after each signal.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import time


def main(bell: int, progress: int) -> None:
    seen = memoryview(mmap.mmap(progress, 4096)).cast("Q")
    chance = random.Random(1)
    while True:
        os.set_blocking(bell, False)
        try:
            os.read(bell, 8)
        except BlockingIOError:
            pass
        until = time.perf_counter() + chance.random() * 20e-6
        while time.perf_counter() < until:
            pass
        try:
            os.write(bell, (2**64 - 2).to_bytes(8, sys.byteorder))
        except BlockingIOError:
            continue
        finally:
            os.set_blocking(bell, True)  # shared with who signals
        before, steps = seen[0], 0
        while steps < 2:
            if seen[0] != before:
                before, steps = seen[0], steps + 1


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
