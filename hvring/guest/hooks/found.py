# SPDX-License-Identifier: Apache-2.0
"""Which programs are hooks, in which order, and with which words each kind is called."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HOOKS: Final = "/etc/hvring/hooks.d"
KNOBS: Final = {"hooks": "native", "hooks_qemu_ga": "qemu-ga", "hooks_open_vm_tools": "open-vm-tools"}
"""The settings that name directories, and the style of what is in them, in the order of freezing."""

MOST: Final = 100  # hooks in one directory; more is a mistake

#: What editors and package managers leave beside a file, and nobody means to run.
_LEFTOVERS: Final = (
    *("~", ".bak", ".orig", ".rej", ".swp", ".tmp", ".sample", ".disabled"),
    *(".rpmnew", ".rpmorig", ".rpmsave", ".ucf-dist", ".ucf-new", ".ucf-old"),
    *(".dpkg-old", ".dpkg-new", ".dpkg-tmp", ".dpkg-dist", ".dpkg-bak", ".dpkg-backup", ".dpkg-remove"),
)


@dataclass(frozen=True, slots=True)
class Style:
    """How the programs of a directory are called.

    ``words``: the argument for a phase; a phase without one is left out.  ``is_strict``: what is no executable is a
    mistake that is told, and not passed over as whoever the directory was made for does.  ``is_reversed``: the last to
    be frozen is the first to get its end.  ``may_hold``: one may say ``held`` and stay.
    """

    words: dict[str, str]
    is_strict: bool = False
    is_reversed: bool = True
    may_hold: bool = False


STYLES: Final[dict[str, Style]] = {
    "native": Style({phase: phase for phase in ("prepare", "freeze", "thaw", "abort")}, True, True, True),
    "qemu-ga": Style({"freeze": "freeze", "thaw": "thaw", "abort": "thaw"}, is_reversed=False),
    "open-vm-tools": Style({"freeze": "freeze", "thaw": "thaw", "abort": "freezeFail"}),
}


@dataclass(frozen=True, slots=True)
class Hook:
    """One program: ``name`` for people, ``argv`` without the word of the phase, ``group`` of its directory."""

    name: str
    argv: tuple[str, ...]
    style: str = "native"
    group: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that is not run, and why."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Found:
    """What the directories hold."""

    hooks: tuple[Hook, ...] = ()
    refused: tuple[Refused, ...] = ()


def find(directories: Sequence[tuple[str, str]], uid: int | None = None) -> Found:
    """``directories``: path and style, in their order; those that there are not hold nothing.

    ``uid``: whose files are trusted besides root's; None: this process's.
    """
    trusted = (0, os.geteuid() if uid is None else uid)
    hooks: list[Hook] = []
    refused: list[Refused] = []
    for group, (directory, style) in enumerate(directories):
        _look_into(directory, style, group, trusted, hooks, refused)
    return Found(tuple(hooks), tuple(refused))


def in_order_of_end(hooks: Sequence[Hook]) -> list[int]:
    """Their indexes: the last first, but the programs of one directory as those who made it are used to."""
    order: list[int] = []
    for group in sorted({hook.group for hook in hooks}, reverse=True):
        members = [index for index, hook in enumerate(hooks) if hook.group == group]
        order += members[::-1] if STYLES[hooks[members[0]].style].is_reversed else members
    return order


def _look_into(
    directory: str,
    style: str,
    group: int,
    trusted: tuple[int, int],
    hooks: list[Hook],
    refused: list[Refused],
) -> None:
    try:
        names = sorted(os.listdir(directory))
        why = _distrust(os.stat(directory), trusted)
    except FileNotFoundError:
        return
    except OSError as error:
        refused.append(Refused(directory, error.strerror or str(error)))
        return
    if why is not None:
        refused.append(Refused(directory, why))
        return
    count = 0
    for name in names:
        if name.startswith(".") or name.endswith(_LEFTOVERS):
            continue
        path = os.path.join(directory, name)
        why = _why_not(path, trusted)
        if why in (_NO_FILE, _NOT_EXECUTABLE) and not STYLES[style].is_strict:
            continue
        count += 1
        if why is None and count > MOST:
            why = f"there are more than {MOST}"
        if why is None:
            hooks.append(Hook(name, (path,), style, group))
        else:
            refused.append(Refused(path, why))


_NO_FILE: Final = "it is not a regular file"
_NOT_EXECUTABLE: Final = "it is not executable"


def _why_not(path: str, trusted: tuple[int, int]) -> str | None:
    try:
        found = os.stat(path)
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISREG(found.st_mode):
        return _NO_FILE
    if not found.st_mode & 0o111:
        return _NOT_EXECUTABLE
    return _distrust(found, trusted)


def _distrust(found: os.stat_result, trusted: tuple[int, int]) -> str | None:
    if found.st_uid not in trusted:
        return f"it belongs to user {found.st_uid}, who is neither root nor the one who runs it"
    if found.st_mode & 0o022:
        return f"others than its owner can write it (mode {stat.S_IMODE(found.st_mode):04o})"
    return None
