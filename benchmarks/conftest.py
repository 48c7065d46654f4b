# SPDX-License-Identifier: Apache-2.0
"""`pytest benchmarks --benchmark-enable`; `--benchmark-json FILE` for report.py."""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hvring import Channel
from hvring.channel import EventfdDoorbell

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import dpdk  # noqa: E402
import example  # noqa: E402
import measure  # noqa: E402


@pytest.fixture(scope="session")
def dpdk_library() -> ctypes.CDLL:
    try:
        return dpdk.library()
    except dpdk.Unavailable as why:
        pytest.skip(str(why))


@pytest.fixture(scope="session")
def pump() -> ModuleType:
    pytest.importorskip("Cython")
    return example.pump()


@pytest.fixture(scope="session")
def plain() -> ModuleType:
    """The model of the tests: a ring in plain Python."""
    spec = importlib.util.spec_from_file_location("plain_ring", HERE.parent / "tests" / "ring" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_benchmark_update_machine_info(config: object, machine_info: dict[str, Any]) -> None:
    machine_info["hvring"] = measure.machine()


@pytest.fixture
def channels() -> Iterator[Callable[..., tuple[Channel, Channel]]]:
    """A guest's and a host's channel over the same memory, for one process or two."""
    opened: list[Channel] = []

    def make(ring_size: int = 4096 + 131072) -> tuple[Channel, Channel]:
        memory = mmap.mmap(-1, 2 * ring_size)
        to_host, to_guest = os.eventfd(0), os.eventfd(0)
        ends = (
            (0, ring_size, EventfdDoorbell(os.dup(to_host), os.dup(to_guest))),
            (ring_size, 0, EventfdDoorbell(to_guest, to_host)),
        )
        made = tuple(
            Channel(memory, ring_size=ring_size, tx_offset=tx, rx_offset=rx, doorbell=doorbell)
            for tx, rx, doorbell in ends
        )
        opened.extend(made)
        return made[0], made[1]

    yield make
    for channel in opened:
        channel.close()
