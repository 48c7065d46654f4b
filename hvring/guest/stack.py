# SPDX-License-Identifier: Apache-2.0
"""What a block device lies on: other devices, and for a loop device a file (looked up in /sys alone)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from hvring.guest.regular import read_text

_DELETED: Final = " (deleted)"


def block_devices(device: str, source: str, sysfs: str = "/sys") -> tuple[str, ...]:
    """The devices ("major:minor") of a superblock: ``device`` itself, or those behind an anonymous number."""
    if not device.startswith("0:"):
        return (device,)
    # The one who mounted it has named one of them, or all: /dev only, and no way out of it.
    names = []
    for one in map(os.path.normpath, source.split(":")):
        if not one.startswith("/dev/"):
            return ()
        try:
            number = os.stat(one).st_rdev
        except OSError:
            return ()
        names.append(f"{os.major(number)}:{os.minor(number)}")
    return (*names, *_others_of_btrfs(names[0], sysfs))


def below(device: str, sysfs: str = "/sys") -> Iterator[str]:
    """The directories in /sys of this device and of every device that it lies on."""
    pending = [os.path.realpath(f"{sysfs}/dev/block/{device}")]
    seen: set[str] = set()
    while pending:
        here = pending.pop()
        if here in seen:
            continue
        seen.add(here)
        yield here
        if os.path.exists(f"{here}/partition"):
            pending.append(os.path.dirname(here))
        pending += [os.path.realpath(f"{here}/slaves/{name}") for name in _list(f"{here}/slaves")]


def is_on_loop(device: str, sysfs: str = "/sys") -> bool:
    """Whether a block device ("major:minor") is a loop device, a part of one, or stacked on one."""
    return any(os.path.isdir(f"{here}/loop") for here in below(device, sysfs))


def backing_files(device: str, sysfs: str = "/sys") -> list[str]:
    """The files below the loop devices that this device lies on."""
    found = []
    for here in below(device, sysfs):
        try:
            with open(
                f"{here}/loop/backing_file", encoding="utf-8", errors="surrogateescape", newline="\n"
            ) as file:
                found.append(file.read().rstrip("\n").removesuffix(_DELETED))
        except OSError:
            continue
    return found


def _others_of_btrfs(device: str, sysfs: str) -> list[str]:
    """One file system may lie on several devices."""
    here = os.path.realpath(f"{sysfs}/dev/block/{device}")
    for uuid in _list(f"{sysfs}/fs/btrfs"):
        names = _list(f"{sysfs}/fs/btrfs/{uuid}/devices")
        places = [os.path.realpath(f"{sysfs}/fs/btrfs/{uuid}/devices/{name}") for name in names]
        if here in places:
            return [
                number for place in places if place != here and (number := read_text(f"{place}/dev").strip())
            ]
    return []


def _list(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []
