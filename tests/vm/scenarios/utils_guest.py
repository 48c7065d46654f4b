# SPDX-License-Identifier: Apache-2.0
"""The guest's side of ``utils``: stop a process between its reading of a request and its answer."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time

_KVP_MESSAGE = 7432  # bytes that hv_utils hands out for each request


def stop_behind_a_read(pid: int, pool: str) -> None:
    """Keep ``pool`` locked until the process has read a request that needs it, and stop the process then.

    It says "locked" when the request may come, and "stopped". The process waits for the lock for two seconds.
    """
    with open(pool, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        before = _bytes_read(pid)
        print("locked", flush=True)
        while _bytes_read(pid) < before + _KVP_MESSAGE:
            time.sleep(0.01)
        os.kill(pid, signal.SIGSTOP)
        print("stopped", flush=True)


def _bytes_read(pid: int) -> int:
    """What it read so far, by all its threads and of all its files: devices count as files do."""
    with open(f"/proc/{pid}/io") as lines:
        return int(next(lines).split()[1])


if __name__ == "__main__":
    stop_behind_a_read(int(sys.argv[1]), sys.argv[2])
