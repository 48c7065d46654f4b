# SPDX-License-Identifier: Apache-2.0
"""`hvring bench compare`: what changed between two runs, in units of the peer of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hvring.cli import main


def results(path: Path, samples: dict[str, dict[str, list[float]]], **machine: object) -> str:
    benchmarks: list[dict[str, object]] = [
        {"name": name, "extra_info": {"samples": each}} for name, each in samples.items()
    ]
    benchmarks.append({"name": "test_of_somebody_else", "extra_info": {}})
    path.write_text(json.dumps({"machine_info": {"hvring": machine}, "benchmarks": benchmarks}))
    return str(path)


def test_a_slower_machine_is_no_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = {"test_packets": {"hvring": [30.0, 31.0, 300.0], "DPDK": [30.0, 31.0, 300.0]}}
    slow = {"test_packets": {"hvring": [60.0, 90.0], "DPDK": [60.0, 90.0]}}
    before = results(tmp_path / "a", fast, processor="one", kernel="6.1")
    after = results(tmp_path / "b", slow, processor="another", kernel="6.1")
    assert main(["bench", "compare", before, after]) == 0
    out = capsys.readouterr().out
    assert "processor: one before, another after" in out
    assert "kernel" not in out
    assert "test_packets" not in out


def test_a_change_is_told_in_units_of_the_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(tmp_path / "a", {"test_packets": {"hvring": [20.0, 40.0], "DPDK": [20.0, 40.0]}})
    after = results(tmp_path / "b", {"test_packets": {"hvring": [30.0, 60.0], "DPDK": [20.0, 40.0]}})
    assert main(["bench", "compare", before, after]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "test_packets hvring / DPDK" in line)
    assert line.split()[-3:] == ["1.00", "1.50", "+50.0%"]


def test_without_a_peer_in_both_medians_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results(tmp_path / "a", {"test_packets": {"hvring": [20.0], "DPDK": [10.0]}})
    after = results(tmp_path / "b", {"test_packets": {"hvring": [30.0]}, "test_new": {"hvring": [1.0]}})
    assert main(["bench", "compare", before, after]) == 0
    out = capsys.readouterr().out
    assert "+50.0%" in out
    assert f"only in {after}: test_new" in out


def test_nothing_in_common_is_a_failure(tmp_path: Path) -> None:
    before = results(tmp_path / "a", {"test_packets": {"hvring": [20.0]}})
    after = results(tmp_path / "b", {"test_new": {"hvring": [1.0]}})
    assert main(["bench", "compare", before, after]) == 1


def test_another_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text("[]")
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "a")]) != 0
    assert "no results file" in capsys.readouterr().err
