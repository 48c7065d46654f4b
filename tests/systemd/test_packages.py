# SPDX-License-Identifier: Apache-2.0
"""The units as the Debian package brings them, under a systemd that has booted; a part of packaging/walk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root


def test_the_units_of_the_packages(boot: Callable[..., Any]) -> None:
    suite, _, tree = os.environ.get("HVRING_WALK", "").partition(":")
    if not tree:
        pytest.skip("needs packages: packaging/walk/run brings them")
    machine = boot(suite, tree=Path(tree), is_bare=True)
    done = machine.run("/root/booted", suite, check=False, timeout=400)
    print(f"\n{done.stdout}{done.stderr}", end="")  # the walk's table
    assert done.returncode == 0
