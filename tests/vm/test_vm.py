# SPDX-License-Identifier: Apache-2.0
"""Every scenario on the default guest kernel; run.py does the same for others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lab import scenarios

_RUN = Path(__file__).with_name("run.py")
_UNAVAILABLE = 77


@pytest.mark.vm
@pytest.mark.parametrize("scenario", scenarios.names())
def test_scenario_holds_on_a_real_vmbus(scenario: str, tmp_path: Path) -> None:
    command = [sys.executable, _RUN, "--scenario", scenario, "--out", tmp_path]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode == _UNAVAILABLE:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout
