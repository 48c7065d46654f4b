# SPDX-License-Identifier: Apache-2.0
"""Runs in virtual machines are left out unless they are asked for: ``pytest -m vm`` or HVRING_LAB=1."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the package ``lab``


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vm: boots virtual machines (minutes, the first time more)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("HVRING_LAB") == "1" or re.search(r"\bvm\b", config.option.markexpr):
        return
    left_out = [item for item in items if item.get_closest_marker("vm")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
