# SPDX-License-Identifier: Apache-2.0
"""A hook without an agent, by the contract of docs/hooks.md, to be ended in ways in which an agent would not."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path
from typing import Any

LIMIT = 180.0


class HookFailed(Exception):
    """Its status and its last words."""


class Hook:
    def __init__(self, namespace: Any, script: Path) -> None:
        self._namespace = namespace
        self.script = script
        self._holds: subprocess.Popen[bytes] | None = None

    def run(self, phase: str) -> None:
        process = self._start(phase)
        _, words = process.communicate(timeout=LIMIT)
        if process.returncode:
            raise HookFailed(f"{phase}: {process.returncode}: {words.decode()}")

    def freeze(self) -> None:
        process = self._start("freeze")
        assert process.stdout is not None
        while True:
            assert select.select([process.stdout], [], [], LIMIT)[0], "it neither ends nor holds"
            line = process.stdout.readline()
            if line == b"held\n":
                self._holds = process
                return
            if not line:
                _, words = process.communicate(timeout=LIMIT)
                if process.returncode:
                    raise HookFailed(f"freeze: {process.returncode}: {words.decode()}")
                return

    def end(self, how: str) -> None:
        holds, self._holds = self._holds, None
        if holds is None:
            self.run(how)
            return
        _, words = holds.communicate(how.encode() + b"\n", timeout=LIMIT)
        if holds.returncode:
            raise HookFailed(f"{how}: {holds.returncode}: {words.decode()}")

    def kill(self) -> None:
        """As if by somebody else."""
        if self._holds is not None:
            os.killpg(self._holds.pid, 9)
            self._holds.communicate()
            self._holds = None

    def _start(self, phase: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._namespace.inside(str(self.script), phase),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            start_new_session=True,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "HVRING_PHASE": phase,
                "HVRING_TIMEOUT": "30.0",
                "HVRING_BACKUP_ID": "b1",
            },
        )
