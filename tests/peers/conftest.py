# SPDX-License-Identifier: Apache-2.0
"""Other programs that share our files, taken unchanged from Debian packages without installing them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Unpack = Callable[..., Path]


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "hvring-tests"


@pytest.fixture(scope="session")
def unpack() -> Unpack:
    """unpack(name, *packages) -> the folder with their files, fetched once and then kept in the cache.

    Skips, and says why, where there is no apt or no network.
    """

    def fetch(name: str, *packages: str) -> Path:
        folder = cache_folder() / name
        if folder.is_dir():
            return folder
        missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
        if missing:
            pytest.skip(f"no Debian packages here: {', '.join(missing)} not installed")
        work = folder.with_name(f"{name}.{os.getpid()}")
        (work / "debs").mkdir(parents=True)
        try:
            download = ["apt-get", "-o", "APT::Sandbox::User=root", "download", *packages]
            try:
                done = subprocess.run(
                    download, cwd=work / "debs", capture_output=True, text=True, timeout=300, check=False
                )
            except subprocess.TimeoutExpired:
                pytest.skip(f"cannot download {', '.join(packages)}: no answer for five minutes")
            if done.returncode:
                pytest.skip(f"cannot download {', '.join(packages)}: {done.stderr.strip().splitlines()[-1]}")
            for package in (work / "debs").glob("*.deb"):
                subprocess.run(["dpkg-deb", "--extract", package, work / "files"], check=True)
            try:
                (work / "files").rename(folder)
            except OSError:
                if not folder.is_dir():  # another run was faster
                    raise
        finally:
            shutil.rmtree(work)
        return folder

    return fetch
