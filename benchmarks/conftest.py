# SPDX-License-Identifier: Apache-2.0
"""`pytest benchmarks` measures and prints the table of targets; `--benchmark-json FILE` keeps the run."""

from __future__ import annotations

import ctypes
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

import c_peers  # noqa: E402
import example  # noqa: E402
import limits as limits_  # noqa: E402
import measure  # noqa: E402
import targets  # noqa: E402

TESTS = pytest.StashKey[dict[str, dict[str, Any]]]()
FACTS = pytest.StashKey[dict[str, object]]()
MISSING = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TESTS] = {}
    config.stash[FACTS] = measure.machine()
    config.stash[MISSING] = {}


@pytest.fixture(autouse=True)
def _kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a benchmark measured, for the table at the end."""
    benchmark = request.getfixturevalue("benchmark") if "benchmark" in request.fixturenames else None
    yield
    if benchmark is not None and benchmark.enabled and "samples" in benchmark.extra_info:
        request.config.stash[TESTS][benchmark.name] = dict(benchmark.extra_info)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    measured = config.stash[TESTS]
    if not measured:
        return
    terminalreporter.section("against the targets")
    run = targets.Run(measured, config.stash[FACTS])
    terminalreporter.write_line(targets.text(run))
    for name, why in config.stash[MISSING].items():
        terminalreporter.write_line(f"no {name} here: {why}")


@pytest.fixture(scope="session")
def peers(pytestconfig: pytest.Config) -> dict[str, ctypes.CDLL]:
    """The C peers that can be had here, by name; the table says why the others cannot."""
    found, missing = c_peers.available()
    pytestconfig.stash[MISSING].update(missing)
    return found


@pytest.fixture(scope="session")
def dpdk_library(peers: dict[str, ctypes.CDLL], pytestconfig: pytest.Config) -> ctypes.CDLL:
    if "DPDK" not in peers:
        pytest.skip(pytestconfig.stash[MISSING]["DPDK"])
    return peers["DPDK"]


@pytest.fixture(scope="session")
def limits() -> limits_.Limits:
    return limits_.Limits()


@pytest.fixture(scope="session")
def pump() -> ModuleType:
    pytest.importorskip("Cython")
    return example.pump()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["hvring"] = config.stash[FACTS]


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
