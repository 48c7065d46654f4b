# SPDX-License-Identifier: Apache-2.0
"""Machines with a real systemd of Debian 12 or 13."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, os.path.dirname(__file__))


@pytest.fixture
def boot(tmp_path: Path, group: Path) -> Iterator[Callable[..., Any]]:
    """boot(suite, **settings) -> Machine, one for a test"""
    from machine import Machine

    running: list[Machine] = []

    def start(suite: str = "bookworm", **settings: Any) -> Machine:
        running.append(Machine(suite, tmp_path / "machine", group, **settings))
        return running[-1]

    yield start
    for machine in running:
        machine.close()
