# SPDX-License-Identifier: Apache-2.0
"""How many instructions does a packet of 64 bytes cost, whatever the machine is doing?"""

from __future__ import annotations

import ctypes
import shutil
from typing import Any

import gate
import pytest


def test_instructions(benchmark: Any, peers: dict[str, ctypes.CDLL]) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    counted = benchmark.pedantic(gate.count, [{name: found.path for name, found in peers.items()}])
    benchmark.extra_info["unit"] = "instructions/packet"
    benchmark.extra_info["samples"] = {name: [number] for name, number in counted.items()}
    assert counted["send + recv_into"] > 0
