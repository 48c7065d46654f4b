# SPDX-License-Identifier: Apache-2.0
"""What is known to go wrong when the file systems of a plan are frozen, found in /proc and /sys before it does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from hvring.guest.disks import disks_below
from hvring.guest.holders import describe, running
from hvring.guest.mounts import Filesystem, Plan
from hvring.guest.regular import read_text
from hvring.guest.stack import backing_files, block_devices

_DESCRIPTORS: Final = 200_000  # of all processes together that are looked at
_FANOTIFY: Final = "anon_inode:[fanotify]"
_ASKED_FIRST: Final = (
    0x10000 | 0x20000 | 0x40000 | 0x100000
)  # FAN_OPEN_PERM, _ACCESS_, _OPEN_EXEC_, FAN_PRE_ACCESS
_LOGGERS: Final = ("rsyslogd", "syslog-ng", "auditd")
_JOURNAL: Final = "/var/log/journal"


@dataclass(frozen=True, slots=True)
class Hazard:
    """``kind`` is a name that stays; ``target``: the mount point that it is about, "" for all."""

    kind: str
    target: str
    what: str
    remedy: str


def find_hazards(
    plan: Plan,
    own_files: Sequence[tuple[str, str]] = (),
    *,
    proc: str = "/proc",
    sysfs: str = "/sys",
    journal: str = _JOURNAL,
) -> list[Hazard]:
    """Of ``plan``.  ``own_files``: what the agent itself writes, as (what it is, path).  Looks at paths: may hang."""
    return [
        *_listeners(plan, proc),
        *_stacked(plan, sysfs),
        *_spread(plan, sysfs),
        *_elsewhere(plan, proc),
        *_others(plan),
        *_swap(plan, proc),
        *_loggers(plan, proc),
        *_writers(plan, journal, own_files),
    ]


def _listeners(plan: Plan, proc: str) -> Iterator[Hazard]:
    """Programs that must say yes before a file is opened: with their log on a frozen file system nobody gets it."""
    by_device = {_number(each): each for each in plan.freeze}
    by_mount = {str(mount.id): each for each in plan.freeze for mount in each.mounts}
    for pid, marks in _marks(proc):
        name = _text(f"{proc}/{pid}/comm").rstrip("\n") or "?"
        found: list[str] = []
        for mark in marks:
            words = dict(word.split(":", 1) for word in mark.split() if ":" in word)
            if not int(words.get("mask", "0"), 16) & _ASKED_FIRST:
                continue
            which = by_mount.get(words.get("mnt_id", "")) if "mnt_id" in words else None
            if which is None and "sdev" in words:
                which = by_device.get(int(words["sdev"], 16))
            found.append("" if which is None else which.target)
        if found:
            targets = sorted({target for target in found if target})
            yield Hazard(
                "fanotify",
                targets[0] if len(targets) == 1 else "",
                f"{name} (process {pid}) is asked before a file is opened"
                + (f" on {', '.join(targets)}" if targets else "")
                + ": once it writes to a frozen file system, nobody opens anything, and the thaw may hang",
                "have it leave this agent alone, or exclude the file system that it writes to (vss.exclude)",
            )


def _marks(proc: str) -> Iterator[tuple[int, list[str]]]:
    left = _DESCRIPTORS
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdecimal()):
        try:
            with os.scandir(f"{proc}/{pid}/fd") as descriptors:
                names = [entry.name for entry in islice(descriptors, left)]
        except OSError:  # it is gone, or not ours to see
            continue
        left -= len(names)
        for name in names:
            try:
                is_listener = os.readlink(f"{proc}/{pid}/fd/{name}") == _FANOTIFY
            except OSError:
                continue
            if is_listener:
                lines = _text(f"{proc}/{pid}/fdinfo/{name}").splitlines()
                yield pid, [line for line in lines if line.startswith("fanotify ") and " mask:" in line]
        if left <= 0:
            return


def _stacked(plan: Plan, sysfs: str) -> Iterator[Hazard]:
    """Images: who is skipped, or is elsewhere, and lies on what is frozen waits with it."""
    frozen = {each.mounts[0].device for each in plan.freeze}
    for each in (*(one.filesystem for one in plan.skipped), *plan.freeze):
        first = each.mounts[0]
        if not first.may_be_a_disk:
            continue
        for device in block_devices(first.device, first.source, sysfs):
            for path in backing_files(device, sysfs):
                holder = plan.holder_of(path)
                if holder is None:
                    continue
                if first.device in frozen:
                    yield Hazard(
                        "loop",
                        each.target,
                        f"{each.target} is an image on {holder.target} ({path}): it is frozen first, and thawed last",
                        "leave it out (vss.exclude) unless the backup needs it to be consistent",
                    )
                else:
                    yield Hazard(
                        "loop",
                        each.target,
                        f"{each.target} is an image on {holder.target} ({path}), which is frozen: who writes to it "
                        "waits",
                        "nothing, unless such a program has something to do with the backup",
                    )


def _spread(plan: Plan, sysfs: str) -> Iterator[Hazard]:
    """A Btrfs, or a volume, of several disks."""
    for each in plan.freeze:
        names = sorted(
            os.path.basename(place) for place in disks_below(each, plan, sysfs) if place is not None
        )
        if len(names) > 1:
            yield Hazard(
                "disks",
                each.target,
                f"{each.target} lies on {len(names)} disks ({', '.join(names)}), whose snapshots belong together",
                "have the host back all of them up at once, in one checkpoint of this machine",
            )


def _elsewhere(plan: Plan, proc: str) -> Iterator[Hazard]:
    """What only a container, or a service with mounts of its own, sees."""
    for each in plan.freeze:
        if each.is_elsewhere:
            who = describe(each.mounts[0].process, proc)
            yield Hazard(
                "namespace",
                each.target,
                f"{each.target} is mounted only where {who} is, which waits while that is frozen",
                "exclude it (vss.exclude) if nothing there belongs into the backup",
            )


def _loggers(plan: Plan, proc: str) -> Iterator[Hazard]:
    """Programs for which others wait when they cannot write."""
    for logger in running(_LOGGERS, proc):
        for target, path in sorted(_written_by(logger.pid, plan, proc).items()):
            if logger.name == "auditd":
                yield Hazard(
                    "log",
                    target,
                    f"{logger} writes to {path} on {target}: once the kernel's backlog is full, what is audited waits, "
                    "and the thaw may be",
                    "a file system of its own that is excluded (vss.exclude), or `auditctl --backlog_wait_time 0`",
                )
            else:
                yield Hazard(
                    "log",
                    target,
                    f"{logger} writes to {path} on {target}: programs that log a lot wait for the thaw",
                    "a file system of its own that is excluded (vss.exclude); hvring itself logs after the thaw",
                )


def _written_by(pid: int, plan: Plan, proc: str) -> dict[str, str]:
    """By frozen file systems, a file on each that the process has open to write."""
    found: dict[str, str] = {}
    try:
        descriptors = os.listdir(f"{proc}/{pid}/fd")
    except OSError:
        return found
    for descriptor in descriptors:
        try:
            path = os.readlink(f"{proc}/{pid}/fd/{descriptor}")
        except OSError:  # closed meanwhile
            continue
        flags = [
            w for w in read_text(f"{proc}/{pid}/fdinfo/{descriptor}").splitlines() if w.startswith("flags:")
        ]
        is_written = any(int(line.split()[1], 8) & os.O_ACCMODE for line in flags)
        holder = plan.holder_of(path) if path.startswith("/") and is_written else None
        if holder is not None:
            found[holder.target] = min(path, found.get(holder.target, path))
    return found


def _others(plan: Plan) -> Iterator[Hazard]:
    """What cannot be frozen, or waits although it is not."""
    for one in plan.skipped:
        mount = one.filesystem.mounts[0]
        if mount.fstype.startswith("fuse") and mount.fstype != "fusectl":
            yield Hazard(
                "fuse",
                mount.target,
                f"{mount.target} ({mount.fstype}) cannot be frozen, and its program may write to what is",
                "stop its program for the backup, or back it up by other means",
            )
        elif mount.fstype == "zfs":
            yield Hazard(
                "zfs",
                mount.target,
                f"{mount.target} is ZFS, which does not know this kind of freeze: it is in the backup as after a crash",
                "take a snapshot of its pool (`zfs snapshot`) before the backup",
            )
        elif mount.fstype == "overlay":
            upper = next(
                (o.removeprefix("upperdir=") for o in mount.options if o.startswith("upperdir=")), None
            )
            holder = None if upper is None else plan.holder_of(upper)
            if holder is not None:
                yield Hazard(
                    "overlay",
                    mount.target,
                    f"a container at {mount.target} writes to {holder.target}, and waits while that is frozen",
                    "nothing, unless a program in it has something to do with the backup",
                )


def _swap(plan: Plan, proc: str) -> Iterator[Hazard]:
    for line in _text(f"{proc}/swaps").splitlines()[1:]:
        words = line.split()
        if len(words) > 1 and words[1] == "file":
            path = words[0].replace("\\040", " ")
            holder = plan.holder_of(path)
            if holder is not None:
                yield Hazard(
                    "swap",
                    holder.target,
                    f"there is a swap file on {holder.target} ({path}): memory may wait for a frozen file system, and "
                    "what is in it is in the backup",
                    "use a swap partition, or exclude that file system",
                )


def _writers(plan: Plan, journal: str, own_files: Sequence[tuple[str, str]]) -> Iterator[Hazard]:
    holder = plan.holder_of(journal) if os.path.isdir(journal) else None
    if holder is not None:
        yield Hazard(
            "journal",
            holder.target,
            f"the journal is on {holder.target} ({journal}): programs that log a lot wait for the thaw",
            "Storage=volatile in journald.conf, or a file system of its own that is excluded; hvring itself logs after "
            "the thaw",
        )
    for what, path in own_files:
        holder = plan.holder_of(os.path.abspath(path))
        if holder is not None:
            yield Hazard(
                "own_files",
                holder.target,
                f"{what} ({path}) is on {holder.target}: what is to be written there waits for the thaw",
                "nothing: the agent goes on meanwhile, and what a host wants changed there waits for 20 seconds",
            )


def _number(filesystem: Filesystem) -> int:
    """As fanotify's fdinfo has it: the kernel's own dev_t."""
    major, minor = filesystem.mounts[0].device.split(":")
    return int(major) << 20 | int(minor)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return file.read(1 << 20)
    except OSError:
        return ""
