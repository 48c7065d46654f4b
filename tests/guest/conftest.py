# SPDX-License-Identifier: Apache-2.0
"""A private mount namespace with file systems in image files, for tests that must not touch this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, os.path.dirname(__file__))

FITHAW = 0xC0045878
_TOOLS = ("unshare", "nsenter", "mkfs.ext4", "mount", "umount")
#: Quietly, over whatever is there; those that are not named here take -q -f.
_MKFS = {**dict.fromkeys(("ext2", "ext3", "ext4"), ("-q", "-F")), "vfat": ()}
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

    def run(self, *command: str, timeout: float = 30) -> str:
        done = subprocess.run(
            self.inside(*command), capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise OSError(f"{command}: {done.stderr}")
        return done.stdout.strip()

    def mount_tmpfs(self, name: str, *options: str) -> str:
        return self._mount(name, "-t", "tmpfs", *options, "hvring-test")

    def mount_image(
        self,
        name: str,
        image_folder: str | None = None,
        *,
        kind: str = "ext4",
        size: int | None = None,
        below: str | None = None,
        options: str = "loop",
    ) -> str:
        """A fresh file system in an image file, which may itself lie on one of the mounts; ``size`` in MiB."""
        if shutil.which(f"mkfs.{kind}") is None:
            pytest.skip(f"not installed: mkfs.{kind}")
        image = f"{image_folder or self.folder}/{name}.img"
        self.run("truncate", f"--size={size or (4 if image_folder else 16)}M", image)
        self.run(f"mkfs.{kind}", *_MKFS.get(kind, ("-q", "-f")), image)
        try:
            # The loop device goes away with the mount, even if this process is killed.
            return self._mount(name, "-o", options, image, below=below)
        except OSError as problem:
            pytest.skip(f"no loop device: {problem}")

    def mount(self, name: str, *what: str) -> str:
        """``what``: mount's words but for the target.  Raises OSError when that cannot be mounted here."""
        return self._mount(name, *what)

    def mount_again(self, name: str, target: str) -> str:
        """A mount in a second place."""
        return self._mount(name, "--bind", target)

    def _mount(self, name: str, *what: str, below: str | None = None) -> str:
        target = f"{below or self.folder}/{name}"
        self.run("mkdir", target)
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
            give_up_at = time.monotonic() + 60
            while True:
                try:
                    self.run(*step, timeout=60)
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


@pytest.fixture
def start(namespace: Any, processes: contextlib.ExitStack) -> Any:
    """start(targets, **settings) -> Service"""
    from freezing_service import Service

    def start_service(targets: list[str], **more: Any) -> Service:
        service = Service(namespace, targets, **more)
        processes.callback(service.kill)
        return service

    return start_service


@pytest.fixture
def frozen(namespace: Any, start: Any, write: Any) -> tuple[str, Any, Any]:
    """A mount that is frozen, the service that holds it so, and a writer that waits for the thaw."""
    mount = namespace.mount_image("a")
    service = start([mount])
    assert service.ask("freeze") is None
    writer = write(mount)
    writer.wait_until_blocked()
    return mount, service, writer


@pytest.fixture
def hang(namespace: Any, processes: contextlib.ExitStack) -> Callable[[str], str]:
    """hang(name) -> the target of a FUSE mount whose daemon does not answer"""

    def mount(name: str) -> str:
        if not os.path.exists("/dev/fuse"):
            pytest.skip("no /dev/fuse")
        target = str(namespace.folder / name)
        os.mkdir(target)
        daemon = subprocess.Popen(
            namespace.inside(sys.executable, str(Path(__file__).with_name("hung_process.py")), target),
            stdout=subprocess.PIPE,
        )

        def end() -> None:
            daemon.kill()  # which ends what waits for it, too
            daemon.communicate()
            namespace.run("umount", target)

        processes.callback(end)
        assert daemon.stdout is not None
        if daemon.stdout.readline() != b"mounted\n":
            pytest.skip("no FUSE mounts here")
        return target

    return mount
