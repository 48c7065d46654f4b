# SPDX-License-Identifier: Apache-2.0
"""Which file systems a backup freezes, in which order, and which it leaves alone (PROTOCOL §4.5.3).

Nothing here opens or stats a mount: one that hangs would take the whole agent with it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from hvring.guest.mountinfo import MOUNTINFO, Mount, Ways, other_mounts, own_mounts, parse_mountinfo
from hvring.guest.patterns import matches
from hvring.guest.stack import backing_files, block_devices, is_on_loop

__all__ = [
    "MOUNTINFO",
    "Filesystem",
    "Mount",
    "Plan",
    "Skipped",
    "is_on_loop",
    "parse_mountinfo",
    "read_plan",
]

ON_NO_DISK: Final = "not on a block device"
_CANNOT_BE_FROZEN: Final = ("vfat", "msdos", "exfat")


@dataclass(frozen=True, slots=True)
class Filesystem:
    """One superblock and everywhere that it is mounted, the oldest mount first; other namespaces come last."""

    mounts: tuple[Mount, ...]

    @property
    def target(self) -> str:
        """Its first mount point, which names it."""
        return self.mounts[0].target

    @property
    def targets(self) -> tuple[str, ...]:
        """All its mount points: in this process's namespace, if there are any."""
        return tuple(dict.fromkeys(mount.target for mount in self.named))

    @property
    def named(self) -> tuple[Mount, ...]:
        """The mounts by which people know it: of this process's namespace, if there are any."""
        return tuple(mount for mount in self.mounts if not mount.process) or self.mounts

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is mounted in other namespaces only."""
        return all(mount.process for mount in self.mounts)

    def __str__(self) -> str:
        first = self.mounts[0]
        where = f", in the namespace of process {first.process}" if first.process else ""
        return f"{self.target} ({first.source}, {first.fstype}{where})"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file system that stays as it is."""

    filesystem: Filesystem
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """``freeze`` in the order of freezing; thawing runs backwards.  ``notes``: what else people should know."""

    freeze: tuple[Filesystem, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()

    def holder_of(self, path: str) -> Filesystem | None:
        """The file system to be frozen that a path of this namespace is on; None: it is on no such one."""
        best: tuple[Mount, Filesystem | None] | None = None
        for filesystem, is_frozen in (
            *((each, True) for each in self.freeze),
            *((one.filesystem, False) for one in self.skipped),
        ):
            for mount in filesystem.mounts:
                if mount.process or not f"{path}/".startswith(f"{mount.target.rstrip('/')}/"):
                    continue
                if best is None or (len(mount.target), mount.id) > (len(best[0].target), best[0].id):
                    best = mount, filesystem if is_frozen else None
        return None if best is None else best[1]


def read_plan(
    *,
    mountinfo: str = MOUNTINFO,
    sysfs: str = "/sys",
    proc: str | None = None,
    only: Collection[str] | None = None,
    exclude: Collection[str] = (),
    loops: Collection[str] = (),
) -> Plan:
    """Apply the rules to what is mounted now.

    ``only``, ``exclude``, ``loops``: patterns of :mod:`hvring.guest.patterns`.  ``only``: freeze nothing but these.
    ``exclude``: leave a file system alone whose first mount, or whose every mount, matches.  ``loops``: freeze these
    although they are on a loop device.  ``proc``: where to look for other mount namespaces; None: in /proc, unless the
    table is not this process's own.  Raises EffectError.

    What lies on a file system (an image) is frozen before it; beyond that the newest mount comes first, "/" last.
    """
    odd: list[str] = []
    table = own_mounts(mountinfo, odd)
    notes = [f"a line of {mountinfo} is not understood: {line!r}" for line in odd]
    if proc is None and mountinfo == MOUNTINFO:
        proc = "/proc"
    if proc is not None:
        ways = Ways(table)
        # Another namespace may show what is hidden in this one.
        known = {mount.device for mount in table if not (mount.may_be_a_disk and ways.is_hidden(mount))}
        table += other_mounts(proc, known, notes)
    freeze: list[Filesystem] = []
    skipped: list[Skipped] = []
    for filesystem in _filesystems(table):
        why = _why_not(filesystem, sysfs, only, exclude, loops)
        if why is not None:
            skipped.append(Skipped(filesystem, why))
            continue
        freeze.append(filesystem)
        inside = [mount.target for mount in filesystem.named if matches(mount, exclude)]
        if inside:
            notes.append(
                f"{filesystem} is frozen although {inside[0]} is excluded: it is the same file system"
            )
    freeze.reverse()
    freeze.sort(key=lambda filesystem: "/" in filesystem.targets)  # stable
    return Plan(tuple(_by_what_lies_on_what(freeze, table, sysfs)), tuple(skipped), tuple(notes))


def _filesystems(table: Sequence[Mount]) -> list[Filesystem]:
    """Superblocks in the order of their first mounts."""
    grouped: dict[str, list[Mount]] = {}
    for mount in table:
        grouped.setdefault(mount.device, []).append(mount)
    return [Filesystem(tuple(mounts)) for mounts in grouped.values()]


def _why_not(
    filesystem: Filesystem,
    sysfs: str,
    only: Collection[str] | None,
    exclude: Collection[str],
    loops: Collection[str],
) -> str | None:
    first, mounts = filesystem.mounts[0], filesystem.named
    if only is not None and not any(matches(mount, only) for mount in mounts):
        return "not asked for"
    if exclude and (matches(mounts[0], exclude) or all(matches(mount, exclude) for mount in mounts)):
        return "excluded"
    if first.fstype.startswith("fuse"):
        return "FUSE cannot be frozen"
    if not first.may_be_a_disk:
        return ON_NO_DISK
    if first.read_only:
        return "read-only"
    if "shutdown" in first.options:
        return "shut down by an error"
    if first.fstype in _CANNOT_BE_FROZEN:
        return f"{first.fstype} cannot be frozen"
    devices = block_devices(first.device, first.source, sysfs)
    if any(is_on_loop(device, sysfs) for device in devices) and not any(matches(m, loops) for m in mounts):
        return "on a loop device"
    return None


def _by_what_lies_on_what(
    freeze: Sequence[Filesystem], table: Sequence[Mount], sysfs: str
) -> list[Filesystem]:
    """The same order, but for images, which come before the file system that holds them."""
    by_device = {filesystem.mounts[0].device: filesystem for filesystem in freeze}
    holds: dict[str, list[Filesystem]] = {}
    for filesystem in freeze:
        first = filesystem.mounts[0]
        for device in block_devices(first.device, first.source, sysfs):
            for path in backing_files(device, sysfs):
                holder = _device_of(path, table)
                if holder in by_device and holder != first.device:
                    holds.setdefault(holder, []).append(filesystem)
    ordered: list[Filesystem] = []
    visited: set[str] = set()

    def place(filesystem: Filesystem) -> None:
        device = filesystem.mounts[0].device
        if device not in visited:
            visited.add(device)
            for image in holds.get(device, ()):
                place(image)
            ordered.append(filesystem)

    for filesystem in freeze:
        place(filesystem)
    return ordered


def _device_of(path: str, table: Sequence[Mount]) -> str | None:
    """The superblock that a path of this namespace leads to, by the table alone: the longest, then the newest mount."""
    best: Mount | None = None
    for mount in table:
        if mount.process or not f"{path}/".startswith(f"{mount.target.rstrip('/')}/"):
            continue
        if best is None or len(mount.target) >= len(best.target):
            best = mount
    return None if best is None else best.device
