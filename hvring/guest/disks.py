# SPDX-License-Identifier: Apache-2.0
"""The disks that a host knows, and which file systems lie on them (PROTOCOL §4.5.5); looked up in /sys alone.

A host names a disk by its controller, target and LUN.  Where anything about that cannot be told, all is frozen: a file
system too many costs a moment, one too few a backup.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from hvring.guest.mounts import Filesystem, Plan, Skipped
from hvring.guest.regular import read_text
from hvring.guest.stack import backing_files, below, block_devices

ON_NO_NAMED_DISK: Final = "on no disk that the host backs up"

_SCSI: Final = 1  # buses, as hosts number them
_IDE: Final = 2
_IDE_CLASS: Final = "32412632-86cb-44a2-9b5c-50d1417354f5"
_DISK: Final = re.compile(
    r"(?P<controller>.*/(?P<guid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}))/host\d+/.*"
    r"/\d+:\d+:(?P<target>\d+):(?P<lun>\d+)/block/[^/]+"
)
#: Mount options that name another device, which is part of the file system.
_ELSEWHERE: Final = ("logdev=", "rtdev=", "journal_dev=", "journal_path=")


class NamedDisk(Protocol):
    """A disk in the words of a host, as :class:`hvring.ic.vss.Lun`; ``controller``: 16 bytes of a GUID."""

    @property
    def bus(self) -> int: ...
    @property
    def controller(self) -> bytes: ...
    @property
    def target(self) -> int: ...
    @property
    def lun(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Address:
    """Where a disk of this machine is attached; ``controller`` is a GUID as in /sys/bus/vmbus/devices."""

    controller: str
    target: int
    lun: int
    is_ide: bool


def attached(sysfs: str = "/sys") -> dict[str, Address]:
    """The disks that hang on a controller of a host, by their directories in /sys."""
    found = {}
    for name in _list(f"{sysfs}/block"):
        place = os.path.realpath(f"{sysfs}/block/{name}")
        if (parts := _DISK.fullmatch(place)) is not None:
            class_id = read_text(f"{parts['controller']}/class_id").strip().strip("{}").lower()
            where = parts["guid"], int(parts["target"]), int(parts["lun"])
            found[place] = Address(*where, is_ide=class_id == _IDE_CLASS)
    return found


def narrowed(plan: Plan, named: Sequence[NamedDisk], sysfs: str = "/sys") -> Plan:
    """What of ``plan`` is on the disks that a host names, in the same order; all of it where that cannot be told.

    A note says which of both.  What an image lies on decides about the image."""
    disks = attached(sysfs)
    wanted: set[str] = set()
    for one in named:
        places = _places(one, disks)
        if not places:
            return _with_note(plan, f"all are frozen: the host names {_words(one)}, which is no disk here")
        wanted |= places
    if not wanted:
        return _with_note(plan, "all are frozen: the host names no disk")
    freeze: list[Filesystem] = []
    left: list[Skipped] = []
    unsure: list[str] = []
    for filesystem in plan.freeze:
        below_it = disks_below(filesystem, plan, sysfs)
        if None not in below_it and not below_it & wanted:
            left.append(Skipped(filesystem, ON_NO_NAMED_DISK))
            continue
        freeze.append(filesystem)
        if not below_it & wanted:
            unsure.append(filesystem.target)
    note = f"of the file systems, only those on the {len(wanted)} disks that the host names are frozen"
    if unsure:
        note += f", and those of which it cannot be told: {', '.join(unsure)}"
    return _with_note(Plan(tuple(freeze), (*plan.skipped, *left), plan.notes), note)


def disks_below(filesystem: Filesystem, plan: Plan, sysfs: str = "/sys") -> set[str | None]:
    """The directories in /sys of the disks that it lies on; with a None among them, it may lie on others, too."""
    return set(_disks_below(filesystem, plan, sysfs, set()))


def _disks_below(filesystem: Filesystem, plan: Plan, sysfs: str, seen: set[str]) -> Iterator[str | None]:
    first = filesystem.mounts[0]
    if first.device in seen:  # images that hold each other
        yield None
        return
    seen.add(first.device)
    devices = block_devices(first.device, first.source, sysfs)
    if not devices or any(option.startswith(_ELSEWHERE) for option in first.options):
        yield None
    for device in devices:
        for here in below(device, sysfs):
            if os.path.isdir(f"{here}/loop"):
                yield from _disks_below_image(device, plan, sysfs, seen)
            elif not os.path.exists(f"{here}/partition") and not _list(f"{here}/slaves"):
                # What hangs on nothing that the kernel shows, as a disk of a network, may be anywhere.
                yield here if os.path.exists(f"{here}/device") else None


def _disks_below_image(device: str, plan: Plan, sysfs: str, seen: set[str]) -> Iterator[str | None]:
    files = backing_files(device, sysfs)
    if not files:
        yield None
    for path in files:
        holder = plan.holder_of(path)
        if holder is None:
            yield None
        else:
            yield from _disks_below(holder, plan, sysfs, seen)


def _places(named: NamedDisk, disks: dict[str, Address]) -> set[str]:
    if named.bus == _IDE:
        # How a host counts these is written nowhere.  There are four at most: all of them, then.
        return {place for place, address in disks.items() if address.is_ide}
    if named.bus != _SCSI:
        return set()
    where = guid_text(named.controller), named.target, named.lun
    return {place for place, at in disks.items() if (at.controller, at.target, at.lun) == where}


def guid_text(raw: bytes) -> str:
    """As in the kernel's names: of the 16 bytes, the first three fields are little-endian."""
    fields = (raw[3::-1], raw[5:3:-1], raw[7:5:-1], raw[8:10], raw[10:])
    return "-".join(field.hex() for field in fields)


def _words(named: NamedDisk) -> str:
    bus = {_SCSI: "SCSI", _IDE: "IDE"}.get(named.bus, f"bus {named.bus}")
    return f"{bus} {guid_text(named.controller)} target {named.target} LUN {named.lun}"


def _with_note(plan: Plan, note: str) -> Plan:
    return Plan(plan.freeze, plan.skipped, (*plan.notes, note))


def _list(path: str) -> Collection[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []
