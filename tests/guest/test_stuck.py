# SPDX-License-Identifier: Apache-2.0
"""Freezes that really do not come back from the kernel: they fail in time, say what holds them, and are thawed late."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from writers import TIMEOUT, wait_for

from hvring.guest import inquest

pytestmark = pytest.mark.root

WRITER = """
import mmap, os, sys
source = os.open(sys.argv[1], os.O_RDONLY)
memory = mmap.mmap(source, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
target = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
print("ready", flush=True)
sys.stdin.readline()
try:
    os.write(target, memory)
except OSError as problem:
    print("failed", flush=True)
else:
    print("written", flush=True)
"""


class Fuse:
    """A file system of one file, whose server may hang."""

    def __init__(self, namespace: Any, name: str, size: int) -> None:
        if not os.path.exists("/dev/fuse"):
            pytest.skip("no /dev/fuse")
        self.target = f"{namespace.folder}/{name}"
        self.file = f"{self.target}/file"
        os.mkdir(self.target)
        program = str(Path(__file__).with_name("fuse_process.py"))
        self.server = subprocess.Popen(
            namespace.inside(sys.executable, program, self.target, str(size)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if self._heard() != b"mounted\n":
            pytest.skip("no FUSE mounts here")

    def tell(self, word: str) -> None:
        assert self.server.stdin is not None
        self.server.stdin.write(f"{word}\n".encode())
        self.server.stdin.flush()
        assert self._heard() == f"{word}\n".encode()

    def _heard(self) -> bytes:
        assert self.server.stdout is not None
        return self.server.stdout.readline()

    def end(self) -> None:
        """What waits for it gets an error."""
        self.server.kill()
        self.server.communicate()


@pytest.fixture
def fuse(namespace: Any, processes: contextlib.ExitStack) -> Callable[..., Fuse]:
    """fuse(name, size) -> a file system that can be made to hang"""

    def mount(name: str, size: int) -> Fuse:
        found = Fuse(namespace, name, size)
        processes.callback(namespace.run, "umount", found.target)
        processes.callback(found.end)
        return found

    return mount


@pytest.fixture
def stuck_writer(namespace: Any, processes: contextlib.ExitStack) -> Callable[[Fuse, str], Any]:
    """stuck_writer(fuse, target): a process in the middle of a write, which lacks what it writes"""

    def begin(source: Fuse, target: str) -> subprocess.Popen[str]:
        writer = subprocess.Popen(
            namespace.inside(sys.executable, "-c", WRITER, source.file, target),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.callback(writer.wait)
        processes.callback(source.end)
        assert writer.stdout is not None
        assert writer.stdin is not None
        processes.callback(writer.stdout.close)
        assert writer.stdout.readline() == "ready\n"
        source.tell("hang")
        writer.stdin.close()
        wait_for(lambda: "vfs_write" in Path(f"/proc/{writer.pid}/stack").read_text())
        return writer

    return begin


def test_a_writer_that_does_not_come_to_an_end_is_named_and_the_others_are_thawed(
    namespace: Any, start: Any, write: Any, fuse: Any, stuck_writer: Any
) -> None:
    held, other = namespace.mount_image("held"), namespace.mount_image("other")
    source = fuse("source", 4096)
    writer = stuck_writer(source, f"{held}/file")
    service = start([other, held], freeze_timeout=1.0)
    answer = service.ask("freeze")
    assert f"freezing {held} (" in answer
    assert "does not end (it waits in " in answer
    assert f" (process {writer.pid}) is in the middle of a write: " in answer
    assert answer.endswith("; the others are thawed")
    assert write(other).has_written()
    assert "still hangs" in service.ask("obstacle")
    source.end()  # now the write ends with an error, and the freeze succeeds, late
    assert writer.wait(TIMEOUT) == 0
    wait_for(lambda: service.ask("obstacle") is None)
    assert write(held).has_written()
    assert service.ask("frozen") is False
    assert service.ask("children") == []
    assert service.ask("freeze") is None
    assert service.ask("thaw") is None
    assert write(held).has_written()


def test_a_disk_that_does_not_answer_is_named_with_what_it_lies_on(
    namespace: Any, start: Any, write: Any, fuse: Any, processes: contextlib.ExitStack
) -> None:
    disk = fuse("disk", 8 << 20)
    namespace.run("mkfs.ext4", "-q", "-F", disk.file)
    target, other = f"{namespace.folder}/on-disk", namespace.mount_image("other")
    namespace.run("mkdir", target)
    try:
        namespace.run("mount", "-o", "loop", disk.file, target)
    except OSError as problem:
        pytest.skip(f"no loop device: {problem}")
    processes.callback(namespace.run, "umount", target)
    processes.callback(disk.tell, "go on")
    processes.callback(namespace.thaw, other)
    namespace.run("touch", f"{target}/file")
    disk.tell("hang")
    service = start([other, target], freeze_timeout=1.0)
    began = time.monotonic()
    answer = service.ask("freeze")
    assert time.monotonic() - began < TIMEOUT
    assert f"writing out {target} (" in answer
    assert f"it is an image: {disk.file}" in answer
    assert write(other).has_written()
    disk.tell("go on")
    wait_for(lambda: service.ask("obstacle") is None)
    assert write(target).has_written()
    assert service.ask("children") == []


def test_an_image_on_a_frozen_file_system_is_said_to_be_one(namespace: Any, start: Any, write: Any) -> None:
    outer = namespace.mount_image("outer")
    inner = namespace.mount_image("inner", image_folder=outer)
    answer = start([outer, inner], freeze_timeout=1.0).ask("freeze")
    assert f"freezing {inner} (" in answer
    assert f"it is an image: {outer}/inner.img" in answer
    assert write(outer).has_written()
    assert write(inner).has_written()


def test_where_opening_hangs_is_said(namespace: Any, start: Any, hang: Callable[[str], str]) -> None:
    mount, hung = namespace.mount_image("a"), hang("hung")
    answer = start([mount], open_timeout=0.5, behind=[f"{hung}/disk"]).ask("freeze")
    assert f"cannot open {hung}/disk (/dev/sdz, ext4): opening it hangs (in " in answer
    assert "fuse" in answer


def test_a_process_in_the_kernel_is_found_where_it_is() -> None:
    reading, writing = os.pipe()
    waiting = subprocess.Popen(["cat"], stdin=reading, stdout=subprocess.DEVNULL)
    try:
        os.close(reading)
        wait_for(lambda: "pipe" in inquest.place(waiting.pid))
        assert inquest.place(10**9) == ""
    finally:
        os.close(writing)
        waiting.wait()
