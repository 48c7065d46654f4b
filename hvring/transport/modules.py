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


def loaded(name: str, sysfs: str | os.PathLike[str] = "/sys") -> bool:
    """Whether the module is in the kernel, built in or loaded."""
    return os.path.isdir(os.path.join(sysfs, "module", name))


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
