# SPDX-License-Identifier: Apache-2.0
"""A private mount namespace with file systems in image files, for tests that must not touch this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, os.path.dirname(__file__))

FITHAW = 0xC0045878
_TOOLS = ("unshare", "nsenter", "mkfs.ext4", "mount", "umount")
_THAW = f"""
import fcntl, os, sys
try:
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), {FITHAW}, 0)
except OSError:
    pass
"""


class MountNamespace:
    """Mounts that nobody else sees. close() thaws and removes all of them, whatever happened before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mounts: list[str] = []
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != b"ready\n":
            self._end_keeper()
            pytest.skip("no private mount namespace: unshare --mount is refused")

    def inside(self, *command: str) -> list[str]:
        """The command line that runs a command in the namespace (with the same process id)."""
        return ["nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt", *command]

    def run(self, *command: str, patience: float = 30) -> str:
        done = subprocess.run(
            self.inside(*command), capture_output=True, text=True, timeout=patience, check=False
        )
        if done.returncode:
            raise OSError(f"{command}: {done.stderr}")
        return done.stdout.strip()

    def mount_tmpfs(self, name: str, *options: str) -> str:
        return self._mount(name, "-t", "tmpfs", *options, "hvring-test")

    def mount_image(self, name: str, image_folder: str | None = None) -> str:
        """A fresh ext4 in an image file, which may itself lie on one of the mounts."""
        image = f"{image_folder or self.folder}/{name}.img"
        size = 4 << 20 if image_folder else 16 << 20
        self.run("truncate", f"--size={size}", image)
        self.run("mkfs.ext4", "-q", "-F", image)
        try:
            # The loop device goes away with the mount, even if this process is killed.
            return self._mount(name, "-o", "loop", image)
        except OSError as problem:
            pytest.skip(f"no loop device: {problem}")

    def _mount(self, name: str, *what: str) -> str:
        target = str(self.folder / name)
        os.mkdir(target)
        self.run("mount", *what, target)
        self._mounts.append(target)
        return target

    def thaw(self, target: str) -> None:
        """Thaw one of the mounts behind everybody's back."""
        assert target in self._mounts
        self.run(*_thaw(target))

    def close(self) -> None:
        problems = []
        # The outer file systems first: what hangs in the inner ones waits for them.
        thaws = [_thaw(target) for target in self._mounts]
        for step in (*thaws, *(("umount", target) for target in reversed(self._mounts))):
            give_up_at = time.monotonic() + 10
            while True:
                try:
                    self.run(*step, patience=10)
                except (OSError, subprocess.TimeoutExpired) as problem:
                    if "busy" in str(problem) and time.monotonic() < give_up_at:
                        time.sleep(0.05)  # a guardian without a service is about to end
                        continue
                    problems.append(f"{step}: {problem}")
                break
        self._end_keeper()
        assert not problems

    def _end_keeper(self) -> None:
        self._keeper.communicate()
        self._keeper.wait()


def _thaw(target: str) -> tuple[str, ...]:
    return sys.executable, "-c", _THAW, target


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[MountNamespace]:
    """An empty private mount namespace; skips without root and the tools for it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts in a private namespace")
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    space = MountNamespace(tmp_path)
    try:
        yield space
    finally:
        space.close()


@pytest.fixture
def processes() -> Iterator[contextlib.ExitStack]:
    """Ends them in reverse order; the namespace fixture thaws what they left."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def write(namespace: Any, processes: contextlib.ExitStack) -> Any:
    """write(target) -> Writer"""
    from writers import Writer

    def start_writer(target: str) -> Writer:
        writer = Writer(namespace, target)
        processes.callback(writer.end)
        return writer

    return start_writer
