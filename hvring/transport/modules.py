# SPDX-License-Identifier: Apache-2.0
"""Kernel modules: load one, and see whether one is there."""

from __future__ import annotations

import os
from typing import Final

_TOOLS: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_SECONDS: Final = 30.0


def load_module(name: str) -> bool:
    """Load a kernel module with its dependencies; False if there is no modprobe or it failed."""
    import shutil
    import subprocess

    tool = shutil.which("modprobe", path=_TOOLS)
    if tool is None:
        return False
    try:
        done = subprocess.run(
            [tool, name], check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def available(name: str, release: str, modules: str | os.PathLike[str] = "/lib/modules") -> bool | None:
    """Whether the module could be loaded; None if this kernel's list of modules cannot be read."""
    found = None
    for index in ("modules.dep", "modules.builtin"):
        try:
            with open(os.path.join(modules, release, index), encoding="utf-8") as file:
                text = file.read()
        except OSError:
            continue
        found = bool(found) or f"/{name}.ko" in text or f"/{name.replace('_', '-')}.ko" in text
    return found


def claims(
    name: str, class_guid: str, release: str, modules: str | os.PathLike[str] = "/lib/modules"
) -> bool | None:
    """Whether the module says that it drives this class of VMBus devices; None if that is not to be found out."""
    alias = _alias(class_guid)
    said = set()
    for index, before, after in (
        ("modules.alias", "alias ", f" {name}\n"),
        ("modules.builtin.modinfo", f"{name}.alias=", "\0"),
    ):
        try:
            with open(os.path.join(modules, release, index), encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            continue
        if f"{before}vmbus:" in text and after in text:
            said.add(f"{before}{alias}{after}" in text)
    return None if not said else True in said


def _alias(class_guid: str) -> str:
    """A class as modules name it: the GUID's bytes as they are in memory."""
    first, second, third, *rest = class_guid.split("-")
    swapped = (bytes.fromhex(part)[::-1].hex() for part in (first, second, third))
    return f"vmbus:{''.join([*swapped, *rest])}"
