# SPDX-License-Identifier: Apache-2.0
"""Debian trees to boot, made once by debootstrap and only read from then on."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

PACKAGES: Final = ("systemd", "systemd-sysv", "dbus", "libpam-systemd", "python3", "udev", "kmod")


def cache() -> Path:
    """$HVRING_TREES, else hvring-trees in $XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get("HVRING_TREES"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvring-trees"


def tree_of(suite: str) -> Path:
    """The tree of a suite (bookworm, trixie); skips the test where none can be made."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = cache() / suite
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_dir():
            return path
        failed = Path(f"{path}.failed")
        if shutil.which("debootstrap") is None:
            pytest.skip("needs debootstrap")
        if failed.exists() and os.environ.get("HVRING_TREES_RETRY") is None:
            pytest.skip(f"debootstrap failed before: see {failed}, and remove it to try again")
        fresh = Path(f"{path}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, os.fspath(fresh)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        if done.returncode:
            shutil.rmtree(fresh, ignore_errors=True)
            failed.write_text(done.stdout + done.stderr)
            pytest.skip(f"no tree of {suite}: {(done.stdout + done.stderr)[-300:]}")
        fresh.rename(path)
    return path
