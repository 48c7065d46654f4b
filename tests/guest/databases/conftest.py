# SPDX-License-Identifier: Apache-2.0
"""Real servers from Debian, each on a file system of its own in a private mount namespace."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, os.path.dirname(__file__))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory that the servers' users get through, with a name short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="hvring-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def scene(namespace: Any, start: Any, processes: contextlib.ExitStack) -> Callable[..., Any]:
    """scene(kind of server, size of each file system, names of more of them, **its options) -> Scene"""
    from scene import Scene

    def make(kind: Any, size: int = 256, *others: str, others_first: bool = False, **options: Any) -> Any:
        mounts = [namespace.mount_image(name, size=size) for name in ("data", *others)]
        server = kind(namespace, *mounts, **options)
        processes.callback(server.end)
        server.begin()
        made = Scene(namespace, mounts[::-1] if others_first else mounts, start, server)
        processes.callback(made.end)
        return made

    return make
