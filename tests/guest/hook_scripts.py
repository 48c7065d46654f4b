# SPDX-License-Identifier: Apache-2.0
"""Hooks as shell scripts that write down each word they are told, and a freezer that does nothing but say so."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hvring.errors import EffectError
from hvring.guest.mounts import Plan

TIMEOUT = 60.0  # for what must happen; nobody waits that long where all is well

#: What a hook does when it is told a phase, in shell.
EXITS = "echo 'no database' >&2; exit 3"
HANGS = "echo waiting >&2; exec sleep 1000"
IGNORES = "trap '' TERM HUP INT; echo deaf >&2; while :; do sleep 1000; done"
KILLED = "kill -KILL $$"
FLOODS = "echo drowned >&2; i=0; while [ $i -lt 2000 ]; do printf '%0512d\\n' $i; i=$((i+1)); done"
LEAVES_A_CHILD = 'echo forked >&2; sleep 1000 & say "child $!"'
HOLDS = 'echo held; read word; say "${word:-eof}"'
HOLDS_AND_DIES = 'echo held; until [ -e "$D/die" ]; do sleep 0.05; done; echo gave up >&2; exit 7'


class Scripts:
    """Programs in a directory, and what they were told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.directory = folder / "hooks.d"
        self.directory.mkdir(mode=0o755)
        self.log.touch()

    def add(self, name: str, directory: Path | None = None, **bodies: str) -> Path:
        """``bodies``: what to do in a phase; nothing in the others."""
        cases = "".join(f"{phase}) {body} ;;\n" for phase, body in bodies.items())
        path = (directory or self.directory) / name
        path.write_text(
            f"#!/bin/sh\nD={self.folder}\n"
            f'say() {{ echo "{name} $1" >>{self.log}; }}\n'
            f'say "$1"\ncase $1 in\n{cases}esac\n'
        )
        path.chmod(0o755)
        return path

    def lines(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if " child " not in line]

    def wait_for(self, line: str, count: int = 1) -> None:
        until = time.monotonic() + TIMEOUT
        while self.log.read_text().splitlines().count(line) < count:
            assert time.monotonic() < until, f"{line!r} does not come: {self.log.read_text()}"
            time.sleep(0.01)

    def check_ends(self, word: str | None = None) -> None:
        """Each that was started has exactly one end, and nobody else."""
        started = {line.split()[0] for line in self.lines() if line.endswith((" prepare", " freeze"))}
        ends = Counter(line.split()[0] for line in self.lines() if line.endswith((" thaw", " abort", " eof")))
        assert dict(ends) == dict.fromkeys(started, 1), self.lines()
        if word is not None:
            said = {line.split()[1] for line in self.lines()}
            assert said & {"thaw", "abort", "eof"} <= {word}, self.lines()

    def wait_for_ends(self) -> None:
        until = time.monotonic() + TIMEOUT
        while True:
            try:
                self.check_ends()
            except AssertionError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
            else:
                return

    def end_children(self) -> None:
        for line in self.log.read_text().splitlines():
            if " child " in line:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line.split()[2]), signal.SIGKILL)


class Still:
    """A freezer that holds nothing still; ``fails``: with these words."""

    def __init__(self, scripts: Scripts, fails: str | None = None) -> None:
        self._scripts = scripts
        self.fails = fails
        self.frozen = False
        self.ready = True
        self.summary = "all"
        self.why: str | None = None

    def plan(self) -> Plan:
        return Plan((), ())

    def freeze(self, named: object = None) -> None:
        if self.fails is not None:
            raise EffectError(self.fails)
        self.frozen = True
        self._say("frozen")

    def thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            self._say("thawed")

    def lost(self) -> str | None:
        return self.why

    def watch(self) -> int:
        return -1

    def _say(self, word: str) -> None:
        with self._scripts.log.open("a") as log:
            log.write(f"- {word}\n")


def processes_of(scripts: Scripts) -> Iterator[int]:
    """Those whose command line has a hook of this directory in it."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.fsencode(scripts.directory) in Path(f"/proc/{entry}/cmdline").read_bytes():
                    yield int(entry)
