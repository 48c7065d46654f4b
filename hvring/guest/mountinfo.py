# SPDX-License-Identifier: Apache-2.0
"""The kernel's mount tables: of this process, and of every other mount namespace that a process is in.

Read from /proc alone: no mounted file system is looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, TextIO

from hvring.errors import EffectError
from hvring.reasons import Reason

MOUNTINFO: Final = "/proc/self/mountinfo"
#: File systems on block devices whose superblocks have an anonymous number (major 0) all the same.
ANONYMOUS: Final = ("btrfs", "bcachefs")
#: What other namespaces may cost at most: anybody may start processes, and mount in a namespace of his own.
MAX_PROCESSES: Final = 20_000
MAX_LINES: Final = 20_000
#: Whoever has to pass one of these on the way to a mount may wait for ever.
_MAY_HANG: Final = ("fuse", "nfs", "cifs", "smb3", "9p", "ceph", "virtiofs", "autofs", "afs")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo; ``read_only`` is about the file system, not only about this mount.

    ``process``: one that is in the mount's namespace; 0 for this process's own.
    """

    id: int
    device: str  #: "major:minor" of the superblock
    target: str
    fstype: str
    source: str
    read_only: bool
    parent: int = 0
    options: tuple[str, ...] = ()  #: of the superblock
    process: int = 0

    @property
    def path(self) -> str:
        """By which this process reaches it."""
        return f"/proc/{self.process}/root{self.target}" if self.process else self.target

    @property
    def may_be_a_disk(self) -> bool:
        """Whether its superblock lies on a block device; this is the kernel's word, not that of who mounted it."""
        return not self.device.startswith("0:") or self.fstype in ANONYMOUS


def parse_mountinfo(lines: Iterable[str], odd: list[str] | None = None, process: int = 0) -> Iterator[Mount]:
    """The mounts in the order of the file; lines that are not understood go into ``odd``."""
    for line in lines:
        left, dash, right = line.rstrip("\n").partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if (
            not dash
            or len(before) < 6
            or len(after) < 3
            or not (before[0].isdecimal() and before[1].isdecimal())
            or not re.fullmatch(r"\d+:\d+", before[2])
        ):
            if odd is not None:
                odd.append(line.rstrip("\n"))
            continue
        options = tuple(after[2].split(","))
        yield Mount(
            id=int(before[0]),
            device=before[2],
            target=_unescape(before[4]),
            fstype=after[0],
            source=_unescape(after[1]),
            read_only="ro" in options or "emergency_ro" in options,
            parent=int(before[1]),
            options=options,
            process=process,
        )


def own_mounts(path: str, odd: list[str]) -> list[Mount]:
    """Raises EffectError."""
    try:
        with open_table(path) as lines:
            return list(parse_mountinfo(lines, odd))
    except OSError as problem:
        raise EffectError(
            f"cannot read {path}: {problem.strerror}", reason=Reason.MOUNTS_UNREADABLE
        ) from problem


def other_mounts(proc: str, known: Collection[str], notes: list[str]) -> list[Mount]:
    """Of disks that are not ``known``, in the mount namespaces of all processes, each namespace once.

    A mount that can be reached only through a file system that may hang, as an ordinary user's FUSE, is only noted.
    """
    found: list[Mount] = []
    seen = {_namespace(f"{proc}/self"), None}
    lines_left = MAX_LINES
    pids = sorted(int(name) for name in os.listdir(proc) if name.isdecimal())
    if len(pids) > MAX_PROCESSES:
        notes.append(f"the mounts of {len(pids) - MAX_PROCESSES} of {len(pids)} processes were not looked at")
    for pid in pids[:MAX_PROCESSES]:
        namespace = _namespace(f"{proc}/{pid}")
        if namespace in seen:
            continue
        seen.add(namespace)
        try:
            with open_table(f"{proc}/{pid}/mountinfo") as file:
                lines = list(islice(file, lines_left + 1))
        except OSError:
            continue  # the process is gone
        lines_left -= len(lines)
        if lines_left < 0:
            notes.append("other mount namespaces hold too many mounts to look at all of them")
            break
        if any(_is_of_new_disk(line, known) for line in lines):
            table = list(parse_mountinfo(lines, process=pid))
            way = Ways(table)
            for mount in table:
                if mount.may_be_a_disk and mount.device not in known:
                    if way.may_hang(mount):
                        notes.append(
                            f"{mount.path} is behind a file system that may hang, and is not looked at"
                        )
                    else:
                        found.append(mount)
    return found


def _is_of_new_disk(line: str, known: Collection[str]) -> bool:
    """A quick look: most lines are of no disk."""
    device = line.split(" ", 3)[2:3]
    return (
        bool(device)
        and device[0] not in known
        and (not device[0].startswith("0:") or any(f" - {name} " in line for name in ANONYMOUS))
    )


class Ways:
    """How the mounts of one table are reached from its root."""

    def __init__(self, table: Iterable[Mount]) -> None:
        self._by_id = {mount.id: mount for mount in table}
        self._at: dict[str, list[Mount]] = {}
        for mount in self._by_id.values():
            self._at.setdefault(mount.target, []).append(mount)

    def may_hang(self, mount: Mount) -> bool:
        """Whether the path leads through a file system that may hang."""
        return any(other.fstype.startswith(_MAY_HANG) for other in self._above(mount))

    def is_hidden(self, mount: Mount) -> bool:
        """Whether another mount lies over it, or over a directory on the way to it."""
        way = {mount.id, *(other.id for other in self._above(mount))}
        place = mount.target
        while True:
            if any(other.id not in way for other in self._at.get(place, ())):
                return True
            if place == "/":
                return False
            place = os.path.dirname(place)

    def _above(self, mount: Mount) -> Iterator[Mount]:
        seen = {mount.id}
        while (parent := self._by_id.get(mount.parent)) is not None and parent.id not in seen:
            seen.add(parent.id)
            yield parent
            mount = parent


def open_table(path: str) -> TextIO:
    """For reading; text that is not UTF-8 is kept."""
    # A line ends with a line feed and nothing else: names of mount points may hold carriage returns.
    return open(path, encoding="utf-8", errors="surrogateescape", newline="\n")


def _namespace(process: str) -> str | None:
    try:
        return os.readlink(f"{process}/ns/mnt")
    except OSError:
        return None


def _unescape(field: str) -> str:
    """Undo the octal escapes of blanks, tabs, line ends and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
