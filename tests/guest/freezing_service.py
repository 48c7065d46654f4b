# SPDX-License-Identifier: Apache-2.0
"""freezer_process.py in the namespace, and how a test talks to it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from writers import TIMEOUT

PROGRAM = Path(__file__).with_name("freezer_process.py")
ROOT = Path(__file__).parents[2]


class Service:
    """freezer_process.py in the namespace."""

    def __init__(self, namespace: Any, targets: list[str], cloned: bool = False, **more: Any) -> None:
        settings = {
            "targets": targets,
            "below": str(namespace.folder),
            "outside": os.readlink("/proc/self/ns/mnt"),
            "deadline": 2 * TIMEOUT,  # not what a test waits for
            "freeze_timeout": TIMEOUT,
            **more,
        }
        clone = ("unshare", "--mount", "--propagation", "private") if cloned else ()
        self._process = subprocess.Popen(
            namespace.inside(*clone, sys.executable, "-W", "error", str(PROGRAM), json.dumps(settings)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def ask(self, word: str, timeout: float = TIMEOUT) -> Any:
        self.tell(word)
        return self.answer(timeout)

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word.encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, timeout: float = TIMEOUT) -> Any:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], timeout)[0], "the service hangs"
        line = self._process.stdout.readline()
        assert line, "the service ended"
        return json.loads(line)

    def guardian(self) -> int:
        """The process id of its guardian, without asking it."""
        (pid,) = self.children()
        return pid

    def children(self) -> list[int]:
        """The process ids of its children, without asking it."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return list(map(int, children.read_text().split()))

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def kill(self, by: signal.Signals = signal.SIGKILL) -> None:
        self._process.send_signal(by)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
