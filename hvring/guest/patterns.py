# SPDX-License-Identifier: Apache-2.0
"""How administrators name file systems: by mount point, by type, by source.

``/srv``, ``/mnt/*`` are about mount points, ``type:xfs`` about the type and ``source:/dev/sdb*`` about what is mounted.
Each is a glob in which ``*`` crosses slashes.  A mount point whose own name looks like a glob is named by that, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hvring.guest.mountinfo import Mount

TYPE: Final = "type:"
SOURCE: Final = "source:"


def mistake(pattern: str) -> str | None:
    """Why it cannot be meant, for people; None: it can."""
    if pattern.startswith(TYPE):
        kind = pattern.removeprefix(TYPE)
        if not kind or "/" in kind or kind != kind.strip():
            return f"{pattern!r} names no type of file systems, as type:vfat does"
    elif pattern.startswith(SOURCE):
        if not pattern.removeprefix(SOURCE).strip():
            return f"{pattern!r} names nothing that can be mounted, as source:/dev/sdb* does"
    elif not pattern.startswith(("/", "*", "?", "[")):
        return f"{pattern!r} is no mount point, which begins with /, and neither type:… nor source:…"
    return None


def matches(mount: Mount, patterns: Iterable[str]) -> bool:
    """Whether one of them names this mount."""
    return any(_is_named(mount, pattern) for pattern in patterns)


def _is_named(mount: Mount, pattern: str) -> bool:
    if pattern.startswith(TYPE):
        return fnmatchcase(mount.fstype, pattern.removeprefix(TYPE))
    if pattern.startswith(SOURCE):
        return fnmatchcase(mount.source, pattern.removeprefix(SOURCE))
    return mount.target == pattern or fnmatchcase(mount.target, pattern)
