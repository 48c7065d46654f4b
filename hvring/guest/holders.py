# SPDX-License-Identifier: Apache-2.0
"""Which programs have a device open, and which unit of systemd they belong to."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from hvring.events import printable
from hvring.guest.regular import read_text

_OURS: Final = "hvring"
_NAME_LENGTH: Final = 15  # the kernel keeps no more of a program's name


@dataclass(frozen=True, slots=True)
class Holder:
    """A process; ``unit`` is "" where systemd did not start it, or is not there."""

    pid: int
    name: str
    unit: str

    @property
    def is_ours(self) -> bool:
        """Whether it is hvring."""
        return self.name == _OURS

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid}{f', {self.unit}' if self.unit else ''})"


def holders(paths: Collection[str], proc: str = "/proc") -> list[Holder]:
    """Processes that have one of these files open, as far as this user may see: root sees all."""
    return [_named(one, proc) for one in _processes(proc) if _has_open(f"{proc}/{one.pid}/fd", paths)]


def running(programs: Collection[str], proc: str = "/proc") -> list[Holder]:
    """Processes of these programs, by their names. Everybody may see them."""
    names = {program[:_NAME_LENGTH] for program in programs}
    return [holder for holder in _processes(proc) if holder.name in names]


def describe(pid: int, proc: str = "/proc") -> str:
    """A process, for people."""
    for one in _processes(proc, [pid]):
        return str(_named(one, proc))
    return f"process {pid}"


def names(found: Sequence[Holder]) -> str:
    """Those processes, for people."""
    return ", ".join(map(str, found))


def units(found: Sequence[Holder]) -> list[str]:
    """The services of systemd that they are."""
    return list(dict.fromkeys(one.unit for one in found if one.unit.endswith(".service")))


def stop_advice(found: Sequence[Holder]) -> str:
    """What to do so that they end and do not come back: udev starts a daemon's unit that is only disabled."""
    daemons = units([one for one in found if not one.is_ours])
    ours = units([one for one in found if one.is_ours])
    commands = [f"`systemctl mask --now {' '.join(daemons)}`"] if daemons else []
    if ours:
        commands.append(f"`systemctl stop {' '.join(ours)}`")
    return ", ".join(commands) or "stop it"


def _processes(proc: str, pids: Collection[int] | None = None) -> Iterator[Holder]:
    """Of these, or all."""
    for pid in sorted(int(n) for n in os.listdir(proc) if n.isdecimal()) if pids is None else pids:
        try:
            with open(f"{proc}/{pid}/comm", encoding="utf-8", errors="replace") as file:
                name = file.read().rstrip("\n")
        except OSError:  # it ended
            continue
        yield Holder(pid, printable(name), printable(_unit(f"{proc}/{pid}/cgroup")))


def _named(holder: Holder, proc: str) -> Holder:
    """By what an interpreter runs.  Asked of holders only: a command line can take as long as that process's memory."""
    if holder.name.startswith("python") and _is_ours(f"{proc}/{holder.pid}/cmdline"):
        return replace(holder, name=_OURS)
    return holder


def _is_ours(path: str) -> bool:
    """Whether an interpreter runs `hvring` or `-m hvring`."""
    try:
        with open(path, "rb") as file:
            words = iter(file.read(4096).split(b"\0")[1:])
    except OSError:
        return False
    for word in words:
        if word == b"-m":
            return next(words, b"") == _OURS.encode()
        if word in (b"-W", b"-X"):
            next(words, None)
        elif not word.startswith(b"-") or word == b"-c":
            return os.path.basename(word) == _OURS.encode()
    return False


def _has_open(directory: str, paths: Collection[str]) -> bool:
    try:
        descriptors = os.listdir(directory)
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if os.readlink(f"{directory}/{descriptor}") in paths:
                return True
        except OSError:  # closed meanwhile
            continue
    return False


def _unit(path: str) -> str:
    """The innermost service or scope of a process: ``0::/system.slice/hv-kvp-daemon.service``."""
    for line in read_text(path).splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "name=systemd"):
            continue
        for part in reversed(group.split("/")):
            if part.endswith((".service", ".scope")):
                return part
    return ""
