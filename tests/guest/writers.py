# SPDX-License-Identifier: Apache-2.0
"""Processes that write into a mount: whether it is frozen shows in whether they get on."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TIMEOUT = 30.0

WRITER = """
import os, sys
print("writing", flush=True)
with open(sys.argv[1], "w") as file:
    file.write("x")
    file.flush()
    os.fsync(file.fileno())
print("written", flush=True)
"""


class Writer:
    """A process that writes one file."""

    def __init__(self, namespace: Any, target: str) -> None:
        self._process = subprocess.Popen(
            namespace.inside(sys.executable, "-c", WRITER, f"{target}/file"), stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"writing\n"

    def wait_until_blocked(self) -> None:
        """Until the kernel shows that it waits for a thaw."""
        wait_for(self.is_blocked)
        assert not self.has_written(0)

    def is_blocked(self) -> bool:
        return Path(f"/proc/{self._process.pid}/wchan").read_text() == "percpu_rwsem_wait"

    def has_written(self, timeout: float = TIMEOUT) -> bool:
        assert self._process.stdout is not None
        ready = select.select([self._process.stdout], [], [], timeout)[0]
        return bool(ready) and self._process.stdout.readline() == b"written\n"

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def wait_for(condition: Any) -> None:
    """Poll what the kernel gives no event for."""
    give_up_at = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.005)


def write_until_blocked(write: Any, target: str) -> Any:
    """A writer that is blocked, after as many as got through."""
    writer = write(target)
    while not writer.is_blocked():
        if writer.has_written(0.01):
            writer = write(target)
    return writer
