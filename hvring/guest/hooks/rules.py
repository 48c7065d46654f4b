# SPDX-License-Identifier: Apache-2.0
"""What a process that runs hooks as root takes from an agent that is not root: nothing that the file does not say.

Who may ask is the agent's user.  Root runs what root's configuration names, and signals only what it started.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hvring.guest.guardian import pid_of
from hvring.guest.hooks import entry_point
from hvring.guest.hooks.found import HOOKS, KNOBS, Hook, find

_PATH: Final = "/etc/hvring.toml"


class Rules:
    """``directories``: those that are configured, each with its style."""

    NOT_CONFIGURED: Final = f"it is none of the directories in {_PATH}, and no others are run by root"

    def __init__(self, directories: Sequence[tuple[str, str]], entry_points: bool = False) -> None:
        self._directories = tuple(directories)
        self.entry_points: Final = entry_points  #: whether those that packages bring are run

    @classmethod
    def read(cls, path: str | None = None) -> Rules:
        """By the file, or that which HVRING_CONFIG names; one that cannot be read allows nothing but the usual one."""
        named = path or os.environ.get("HVRING_CONFIG") or _PATH
        section = _section(named)
        return cls(configured(section), section.get("hooks_entry_points") is True)

    def allow(self, path: str, style: str) -> bool:
        """Whether what is in it is run."""
        return (path, style) in self._directories

    def check(self, hooks: Sequence[Hook]) -> None:
        """ValueError for one that the directories do not hold."""
        known = {(hook.name, hook.argv, hook.style) for hook in find(self._directories).hooks}
        for hook in hooks:
            if self.entry_points and hook == entry_point.hooks([hook.name], hook.group)[0]:
                continue
            if (hook.name, hook.argv, hook.style) not in known:
                raise ValueError(f"{hook.argv} is no hook here")

    def is_one_of_ours(self, process: int, proc: str = "/proc") -> bool:
        """Whether the process behind a pidfd was started by one of this unit."""
        try:
            with (
                open(f"{proc}/{pid_of(process)}/cgroup", encoding="utf-8") as theirs,
                open(f"{proc}/self/cgroup", encoding="utf-8") as ours,
            ):
                return set(map(_above, theirs)) == set(map(_above, ours))
        except OSError:
            return False


def configured(section: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The directories of a section [vss], and their styles."""
    found: list[tuple[str, str]] = []
    for knob, style in KNOBS.items():
        said = section.get(knob, HOOKS if style == "native" else [])
        found += [
            (str(path), style) for path in ([said] if isinstance(said, str) else said) if path != "none"
        ]
    return found


def _section(path: str) -> Mapping[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            section = tomllib.load(file).get("vss", {})
    except (OSError, ValueError):
        return {}
    return section if isinstance(section, dict) else {}


def _above(line: str) -> str:
    """Of a control group, the one above it: each connection has its own below that of the unit's template."""
    return os.path.dirname(line.rstrip("\n"))
