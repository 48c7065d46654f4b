# SPDX-License-Identifier: Apache-2.0
"""Which file systems a backup freezes, in which order, and which it leaves alone (PROTOCOL §4.5.3)."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from hvring.errors import EffectError

MOUNTINFO: Final = "/proc/self/mountinfo"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo; ``read_only`` is about the file system, not only about this mount."""

    id: int
    device: str  #: "major:minor" of the superblock
    target: str
    fstype: str
    source: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Filesystem:
    """One superblock and everywhere that it is mounted, the oldest mount first."""

    mounts: tuple[Mount, ...]

    @property
    def target(self) -> str:
        """Its first mount point, which names it."""
        return self.mounts[0].target

    @property
    def targets(self) -> tuple[str, ...]:
        """All its mount points."""
        return tuple(mount.target for mount in self.mounts)

    def __str__(self) -> str:
        return f"{self.target} ({self.mounts[0].source}, {self.mounts[0].fstype})"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file system that stays as it is."""

    filesystem: Filesystem
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """``freeze`` in the order of freezing; thawing runs backwards."""

    freeze: tuple[Filesystem, ...]
    skipped: tuple[Skipped, ...]


def read_plan(
    *,
    mountinfo: str = MOUNTINFO,
    sysfs: str = "/sys",
    only: Collection[str] | None = None,
    exclude: Collection[str] = (),
    loops: Collection[str] = (),
) -> Plan:
    """Apply the rules to what is mounted now.

    ``only``: freeze nothing but these mount points. ``exclude``: globs of mount points to leave alone.
    ``loops``: mount points to be frozen although they are on a loop device. Raises EffectError.

    The newest mount comes first, so that an image is frozen before the file system that it lies on;
    "/" comes last.
    """
    freeze: list[Filesystem] = []
    skipped: list[Skipped] = []
    for filesystem in _filesystems(mountinfo):
        why = _why_not(filesystem, sysfs, only, exclude, loops)
        if why is None:
            freeze.append(filesystem)
        else:
            skipped.append(Skipped(filesystem, why))
    freeze.reverse()
    freeze.sort(key=lambda filesystem: "/" in filesystem.targets)  # stable
    return Plan(tuple(freeze), tuple(skipped))


def parse_mountinfo(lines: Iterable[str]) -> Iterator[Mount]:
    """The mounts in the order of the file; lines that are not understood are passed over."""
    for line in lines:
        left, dash, right = line.rstrip("\n").partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if not dash or len(before) < 6 or len(after) < 3 or not before[0].isdecimal():
            continue
        yield Mount(
            id=int(before[0]),
            device=before[2],
            target=_unescape(before[4]),
            fstype=after[0],
            source=_unescape(after[1]),
            read_only="ro" in after[2].split(","),
        )


def is_on_loop(device: str, sysfs: str = "/sys") -> bool:
    """Whether a block device ("major:minor") is a loop device, a part of one, or stacked on one."""
    pending = [os.path.realpath(f"{sysfs}/dev/block/{device}")]
    seen: set[str] = set()
    while pending:
        here = pending.pop()
        if here in seen:
            continue
        seen.add(here)
        if os.path.isdir(f"{here}/loop"):
            return True
        if os.path.exists(f"{here}/partition"):
            pending.append(os.path.dirname(here))
        try:
            below = os.listdir(f"{here}/slaves")
        except OSError:
            continue
        pending += [os.path.realpath(f"{here}/slaves/{name}") for name in below]
    return False


def _filesystems(mountinfo: str) -> Iterable[Filesystem]:
    """Superblocks in the order of their first mounts."""
    grouped: dict[str, list[Mount]] = {}
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as lines:
            for mount in parse_mountinfo(lines):
                grouped.setdefault(mount.device, []).append(mount)
    except OSError as problem:
        raise EffectError(f"cannot read {mountinfo}: {problem.strerror}") from problem
    return [Filesystem(tuple(mounts)) for mounts in grouped.values()]


def _why_not(
    filesystem: Filesystem,
    sysfs: str,
    only: Collection[str] | None,
    exclude: Collection[str],
    loops: Collection[str],
) -> str | None:
    first, targets = filesystem.mounts[0], filesystem.targets
    if only is not None and not any(target in only for target in targets):
        return "not asked for"
    if any(fnmatchcase(target, glob) for target in targets for glob in exclude):
        return "excluded"
    if not first.source.startswith("/dev/"):
        return "not on a block device"
    if first.read_only:
        return "read-only"
    if first.fstype == "vfat":
        return "vfat cannot be frozen"
    if is_on_loop(_block_device(first), sysfs) and not any(target in loops for target in targets):
        return "on a loop device"
    return None


def _block_device(mount: Mount) -> str:
    """The device below; btrfs shows an anonymous number (major 0) in its place."""
    if mount.device.startswith("0:"):
        try:
            number = os.stat(mount.source).st_rdev
        except OSError:
            return mount.device
        return f"{os.major(number)}:{os.minor(number)}"
    return mount.device


def _unescape(field: str) -> str:
    """Undo the octal escapes of blanks, tabs, line ends and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
