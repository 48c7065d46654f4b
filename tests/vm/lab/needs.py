# SPDX-License-Identifier: Apache-2.0
"""What this machine lacks to run the lab, and how many machines at a time it can emulate."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from pathlib import Path

from lab import UnavailableError, debian

_TOOLS = {"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg", "tar": "tar", "gcc": "gcc"}
_MEMORY = 2 << 30  # a machine takes about 1.3 GB
_AT_A_TIME = 2  # by default: each keeps a core busy, and a timeout is meant for a machine that gets one
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
    there = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    if not (cache / "root/.made").exists() and shutil.disk_usage(there).free < _DISK:
        raise UnavailableError(f"less than {_DISK >> 20} MB free in {there}")
    debian.keyring()
    debian.mirror()


def jobs(wanted: int | None, meminfo: Path = Path("/proc/meminfo")) -> int:
    """How many machines run side by side: ``wanted``, or by default one for each core, two at most, that fit in memory.

    Raises UnavailableError if there is not memory enough for that many, or for one.
    """
    found = re.search(r"MemAvailable: *(\d+) kB", meminfo.read_text())
    available = int(found[1]) << 10 if found else sys.maxsize
    fit = available // _MEMORY
    number = wanted or max(1, min(_AT_A_TIME, len(os.sched_getaffinity(0)), fit))
    if number > fit:
        raise UnavailableError(
            f"{available >> 20} MB of memory available, {number * _MEMORY >> 20} needed for {number} at a time"
        )
    return number
