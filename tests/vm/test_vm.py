# SPDX-License-Identifier: Apache-2.0
"""Every scenario on the default guest kernel; run.py does the same for others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lab import scenarios

_RUN = Path(__file__).with_name("run.py")
_UNAVAILABLE = 77


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of one run of all scenarios that are asked for: it knows what can go side by side."""
    out = tmp_path_factory.mktemp("lab")
    command = [sys.executable, str(_RUN), "--out", str(out)]
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec"):
            command += ["--scenario", item.callspec.params["scenario"]]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode == _UNAVAILABLE:
        pytest.skip(done.stdout.splitlines()[-1])
    print(done.stdout)
    assert (out / "results.json").exists(), done.stdout
    return json.loads((out / "results.json").read_text())


@pytest.mark.vm
@pytest.mark.parametrize("scenario", scenarios.names())
def test_scenario_holds_on_a_real_vmbus(scenario: str, rows: list[dict[str, Any]]) -> None:
    own = [row for row in rows if row["scenario"] == scenario]
    assert own, "it did not run"
    assert [row for row in own if row["status"] == "FAILED"] == []
