# SPDX-License-Identifier: Apache-2.0
"""Makes the package ``hv_utils_model`` importable, and loads its kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from hv_utils_model import DEBIAN_12, HvUtils, Kernel
from serving import Freezer

from hvring.guest.files import DirectoryReceiver
from hvring.guest.pools import PoolStore
from hvring.services import Fcopy, Kvp, Vss

Load = Callable[[Kernel], HvUtils]


@pytest.fixture
def load() -> Iterator[Load]:
    """hv_utils of a kernel; what is open at the end of the test is closed."""
    loaded: list[HvUtils] = []

    def load(kernel: Kernel) -> HvUtils:
        loaded.append(HvUtils(kernel))
        return loaded[-1]

    yield load
    for one in loaded:
        one.close()


@pytest.fixture
def kernel(load: Load) -> HvUtils:
    """6.1.176."""
    return load(DEBIAN_12)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir()
    return path


@pytest.fixture
def services(tmp_path: Path, files: Path) -> dict[str, Any]:
    """kvp with real pools, backup with a freezer that only says so, copies with real files."""
    return {
        "kvp": Kvp(PoolStore(tmp_path / "pools")),
        "vss": Vss(Freezer()),
        "fcopy": Fcopy(DirectoryReceiver([files], sync=False)),
    }
