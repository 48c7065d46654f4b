# SPDX-License-Identifier: Apache-2.0
"""One backup after another of a file system that a database writes into, and each image looked at."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hook_runner import Hook
from program import TIMEOUT, Writers

HOOKS = Path(__file__).parents[3] / "examples" / "hooks"


class Server(Protocol):
    """A database in its file systems, or in copies of them."""

    def begin(self) -> None: ...

    def hook(self) -> str:
        """The script that calls the hook for this server."""
        ...

    def clients(self) -> list[Any]: ...

    def look(self, *data: str) -> list[int]:
        """Start another server on the copies; what each writer's last transaction there is, once all is sound."""
        ...

    def end(self) -> None: ...


@dataclass
class Backup:
    """What was known of each writer's transactions, and what the image has."""

    before: list[int]  # acknowledged before the backup began
    frozen: list[int]  # acknowledged until the file system was frozen
    late: list[int]  # acknowledged until right before the thaw
    found: list[int]
    took: float  # seconds from the host's freeze to the answer to its thaw
    stall: float  # seconds that a writer waited, at most


class Scene:
    """File systems in images, a server on them, its hook, and writers."""

    def __init__(self, namespace: Any, mounts: list[str], start: Any, server: Server) -> None:
        self.namespace = namespace
        self.server = server
        self._mounts = mounts
        self._start = start
        script = self._write_hook()
        patient = {"open_timeout": TIMEOUT, "freeze_timeout": TIMEOUT, "deadline": 3 * TIMEOUT}
        self._freezers = {
            True: start(mounts, hooks=str(script.parent), **patient),
            False: start(mounts, **patient),
        }
        self.hook = Hook(namespace, script)
        self.writers = Writers(server.clients())

    def end(self) -> None:
        self.hook.kill()
        self.writers.end()

    def back_up(self, *, hook: bool = True) -> Backup:
        freezer = self._freezers[hook]
        self.writers.get_on()
        self.writers.longest_stall()
        before = self.writers.acknowledged()
        began = time.monotonic()
        assert freezer.ask("freeze", TIMEOUT) is None
        frozen = self.writers.acknowledged()
        for mount in self._mounts:
            subprocess.run(["cp", "--sparse=always", f"{mount}.img", f"{mount}.copy.img"], check=True)
        late = self.writers.acknowledged()
        assert freezer.ask("thaw", TIMEOUT) is None
        took = time.monotonic() - began
        self.writers.get_on()
        stall = self.writers.longest_stall()
        self.writers.hold()
        try:
            with contextlib.ExitStack() as stack:
                found = self.server.look(
                    *[stack.enter_context(self._copy(mount)) for mount in sorted(self._mounts)]
                )  # data, then log
        finally:
            self.writers.go()
        return Backup(before, frozen, late, found, took, stall)

    def fail(self, hung: str) -> None:
        """A backup that fails once the hook holds: a file system cannot be opened within 5 s. Writers go on."""
        hooks = str(self.hook.script.parent)
        freezer = self._start(self._mounts, hooks=hooks, behind=[f"{hung}/disk"])
        self.writers.get_on()
        self.writers.longest_stall()
        assert hung in freezer.ask("freeze", TIMEOUT)
        self.writers.get_on()
        print(f"\na freeze that fails: longest wait of a writer {self.writers.longest_stall():.2f} s")

    @contextlib.contextmanager
    def _copy(self, mount: str) -> Iterator[str]:
        image, target = f"{mount}.copy.img", f"{mount}.copy"
        features = self.namespace.run("dumpe2fs", "-h", image)
        assert "needs_recovery" not in features, "the copy was made of what was not frozen"
        os.makedirs(target, exist_ok=True)
        self.namespace.run("mount", "-o", "loop", image, target)
        try:
            yield target
        finally:
            self._unmount(target)
            os.unlink(image)

    def _unmount(self, target: str) -> None:
        """As soon as the last process of a server that was killed has gone."""
        give_up_at = time.monotonic() + TIMEOUT
        while True:
            try:
                self.namespace.run("umount", target)
                return
            except OSError as problem:
                if "busy" not in str(problem) or time.monotonic() > give_up_at:
                    raise
            time.sleep(0.01)

    def _write_hook(self) -> Path:
        folder = self.namespace.folder / "hooks.d"
        folder.mkdir()
        script = folder / "50-database"
        script.write_text(self.server.hook())
        script.chmod(0o755)
        return script


def report(name: str, backups: list[Backup], is_whole: Callable[[Backup], bool]) -> None:
    """For people: `pytest -s`."""
    took, stalls = sorted(backup.took for backup in backups), sorted(backup.stall for backup in backups)
    middle = len(backups) // 2
    print(
        f"\n{name}: {sum(map(is_whole, backups))}/{len(backups)} consistent, "
        f"{sum(backups[-1].found)} transactions in the last; "
        f"seconds from freeze to thaw {took[middle]:.2f} (most {took[-1]:.2f}), "
        f"longest wait of a writer {stalls[middle]:.2f} (most {stalls[-1]:.2f})"
    )


def count_of_backups(default: int = 3) -> int:
    return int(os.environ.get("HVRING_BACKUPS", default))
