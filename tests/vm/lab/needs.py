# SPDX-License-Identifier: Apache-2.0
"""What this machine lacks to run the lab."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

from lab import UnavailableError, debian

_TOOLS = {"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg", "tar": "tar", "gcc": "gcc"}
_MEMORY = 2 << 30  # a run takes about 1.3 GB
_DISK = 1 << 30


def check(cache: Path) -> None:
    """Raise UnavailableError with the first reason why the lab cannot run here; the network is not asked."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise UnavailableError(
            f"the lab runs on Linux on x86-64 only, this is {platform.system()} on {platform.machine()}"
        )
    if missing := [
        f"{tool} (package {package})" for tool, package in _TOOLS.items() if not shutil.which(tool)
    ]:
        raise UnavailableError(f"missing: {', '.join(missing)}")
    if not Path("/usr/include/stdio.h").exists():
        raise UnavailableError("missing: headers of the C library (package libc6-dev)")
    available = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    if available and int(available[1]) << 10 < _MEMORY:
        raise UnavailableError(f"{int(available[1]) >> 10} MB of memory available, {_MEMORY >> 20} needed")
    there = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    if not (cache / "root/.made").exists() and shutil.disk_usage(there).free < _DISK:
        raise UnavailableError(f"less than {_DISK >> 20} MB free in {there}")
    debian.keyring()
    debian.mirror()
