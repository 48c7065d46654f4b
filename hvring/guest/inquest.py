# SPDX-License-Identifier: Apache-2.0
"""Why a process does not come back from the kernel, and who keeps a file system from being frozen: found in /proc.

The guardian loads this file by its place, before it freezes anything; it imports nothing but the standard library.  It
looks at no path of a file system: /proc/PID/fdinfo says which mounts a process has open.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Final

_BUDGET: Final = 0.5  # seconds; others are frozen meanwhile
_FRAMES: Final = 5  # functions of the kernel that are named, of
_DEEPEST: Final = 40  # those that are looked at
_MOST: Final = 3  # processes that are named
#: Who is in one of these has said that it writes, and a freeze waits until it is done.
_WRITING: Final = (
    "vfs_write",
    "vfs_iter_write",
    "vfs_writev",
    "do_writev",
    "ksys_write",
    "splice_direct_to_actor",
    "iter_file_splice_write",
    "vfs_copy_file_range",
    "vfs_fallocate",
    "do_truncate",
    "do_page_mkwrite",
    "do_mkdirat",
    "do_unlinkat",
    "do_renameat2",
    "path_openat",
    "loop_process_work",
    "lo_rw_aio",
)
#: Who waits here waits for a thaw itself.
_THAW: Final = ("percpu_rwsem_wait", "__percpu_down_read", "percpu_down_read", "__sb_start_write")
#: Of no use to anybody.
_NOISE: Final = (
    "do_syscall_64",
    "entry_SYSCALL_64_after_hwframe",
    "el0_svc",
    "invoke_syscall",
    "0xffffffffffffffff",
)


def place(pid: int, proc: str = "/proc") -> str:
    """Where a process is in the kernel, as ``a < b``: a was called by b; "" if nobody may know, or it is not there."""
    return " < ".join(_frames(f"{proc}/{pid}")[:_FRAMES])


def why(child: int, mount: int, tables: Sequence[int], proc: str = "/proc") -> str:
    """For people: where the process ``child`` waits that freezes, and who has begun to write and does not come to an
    end.  ``mount``: a descriptor of this process; ``tables``: processes one of which has it among its mounts.
    """
    where = place(child, proc)
    words = [f"it waits in {where}"] if where else []
    device = _device(mount, tables, proc)
    if device:
        found = list(_holders(device, (child, os.getpid()), proc))[:_MOST]
        words += [f"{name} (process {pid}) is in the middle of a write: {at}" for pid, name, at in found]
    return "; ".join(words)


def _holders(device: str, but: Sequence[int], proc: str) -> Iterator[tuple[int, str, str]]:
    until = time.monotonic() + _BUDGET
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdecimal()):
        if pid in but:
            continue
        if time.monotonic() > until:
            return
        for task in _list(f"{proc}/{pid}/task"):
            here = f"{proc}/{pid}/task/{task}"
            name, state = _name_and_state(here)
            if state not in ("D", "S"):
                continue
            frames = _frames(here)
            is_writing = any(frame in _WRITING for frame in frames)
            if (
                is_writing
                and not any(frame in _THAW for frame in frames[:4])
                and _writes(pid, name, device, proc)
            ):
                yield pid, name, " < ".join(frames[:_FRAMES])
                break


def _writes(pid: int, name: str, device: str, proc: str) -> bool:
    """Whether it has something of the device open, or is the kernel's own thread for it."""
    major, minor = device.split(":")
    if major == "7" and name.endswith(f"loop{minor}"):
        return True
    mounts = {fields[0] for fields in _table(pid, proc) if fields[2] == device}
    for descriptor in _list(f"{proc}/{pid}/fdinfo"):
        for line in _read(f"{proc}/{pid}/fdinfo/{descriptor}").splitlines():
            if line.startswith("mnt_id:") and line.split()[1] in mounts:
                return True
    return False


def _device(mount: int, tables: Sequence[int], proc: str) -> str:
    """Of a mount that is open here: "major:minor", or ""."""
    facts = _read(f"{proc}/self/fdinfo/{mount}").splitlines()
    ids = [line.split()[1] for line in facts if line.startswith("mnt_id:")]
    for pid in tables:
        for fields in _table(pid, proc):
            if fields[0] in ids:
                return fields[2]
    return ""


def _table(pid: int, proc: str) -> Iterator[list[str]]:
    for line in _read(f"{proc}/{pid}/mountinfo").split("\n"):
        fields = line.split(" ", 3)
        if len(fields) == 4:
            yield fields


def _frames(task: str) -> list[str]:
    """The functions of the kernel that it is in, the innermost first."""
    lines = _read(f"{task}/stack").splitlines()[:_DEEPEST]
    found = [line.partition("] ")[2].partition("+")[0].partition(".")[0] for line in lines]
    if not found:
        found = [_read(f"{task}/wchan").strip()]
    return [name for name in found if name and name != "0" and name not in _NOISE]


def _name_and_state(task: str) -> tuple[str, str]:
    head, _, tail = _read(f"{task}/stat").rpartition(")")
    return head.partition("(")[2], tail[1:2]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:  # it is gone, or not to be seen
        return ""


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
