# SPDX-License-Identifier: Apache-2.0
"""`hvring hooks`, as administrators use it before the first backup."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HVRING = [sys.executable, "-W", "error", "-m", "hvring", "hooks"]


def call(*words: object, status: int = 0) -> str:
    done = subprocess.run(
        [*HVRING, *map(str, words)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout + done.stderr


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "hooks.d"
    made.mkdir(mode=0o755)
    add(made, "10-cache", 'echo "flushed $1"')
    add(
        made,
        "20-database",
        '[ "$1" = freeze ] || exit 0; echo held; read -r word; [ "$word" ] && echo "was told $word"',
    )
    return made


def add(directory: Path, name: str, body: str, mode: int = 0o755) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(mode)


def test_a_list_in_order_and_what_is_refused(directory: Path) -> None:
    assert [line.split()[1:3] for line in call("list", "--hooks", directory).splitlines()] == [
        ["10-cache", "native"],
        ["20-database", "native"],
    ]
    add(directory, "30-open", "true", 0o777)
    assert f"REFUSED, and so is every backup: {directory}/30-open: others than its owner" in call(
        "list", "--hooks", directory, status=1
    )
    found = json.loads(call("list", "--hooks", directory, "--json", status=1))
    assert [hook["phases"] for hook in found["hooks"]] == 2 * [["prepare", "freeze", "thaw", "abort"]]
    assert [one["path"] for one in found["refused"]] == [f"{directory}/30-open"]


def test_the_directories_are_those_of_the_file(directory: Path, tmp_path: Path) -> None:
    config = tmp_path / "hvring.toml"
    config.write_text(f'[vss]\nhooks = "none"\nhooks_qemu_ga = ["{directory}"]\n')
    assert "20-database  qemu-ga" in call("list", "--config", config)
    config.write_text("[vss]\nhocks = 3\n")
    assert "did you mean hooks" in call("list", "--config", config, status=1)
    assert call("list", "--hooks", tmp_path / "none") == f"no hooks in {tmp_path}/none\n"


def test_a_trial_says_what_each_came_to(directory: Path) -> None:
    rows = [line.split() for line in call("test", "--hooks", directory).splitlines()]
    assert [(row[0], row[1], row[3]) for row in rows[1:]] == [
        ("10-cache", "prepare", "well"),
        ("20-database", "prepare", "well"),
        ("10-cache", "freeze", "well"),
        ("20-database", "freeze", "holds"),
        ("20-database", "thaw", "well"),
        ("10-cache", "thaw", "well"),
    ]
    assert rows[-2][4:] == ["was", "told", "thaw"]
    aborted = json.loads(call("test", "--hooks", directory, "--hook", "20-database", "--abort", "--json"))
    assert [(one["hook"], one["phase"]) for one in aborted["outcomes"]] == [
        ("20-database", "prepare"),
        ("20-database", "freeze"),
        ("20-database", "abort"),
    ]
    assert aborted["error"] is None


def test_a_trial_that_fails_says_what_to_do(directory: Path) -> None:
    add(directory, "30-bad", 'echo "no such database" >&2; [ "$1" != freeze ]')
    said = call("test", "--hooks", directory, status=1)
    assert "a backup would be refused: the hook 30-bad at freeze: exit status 1: no such database" in said
    assert "what to do: its last words" in said
    assert [line.split()[1] for line in said.splitlines() if line.startswith("20-database")][-1] == "abort"
    facts = json.loads(call("test", "--hooks", directory, "--json", status=1))
    assert facts["reason"] == "hook_failed"
    assert "there is no hook 'x'" in call("test", "--hooks", directory, "--hook", "x", status=2)


def test_the_plan_of_a_freeze_has_them(directory: Path) -> None:
    from hvring.agent.settings import Settings, VssSettings
    from hvring.cli.freeze import _page
    from hvring.daemon.planning import answer, question

    add(directory, "30-open", "true", 0o666)
    settings = Settings(real=True, vss=VssSettings(only=["/nowhere"], hooks=str(directory)))
    plan = {**answer(question(settings)), "by": None}
    assert [(hook["name"], hook["refused"] is None) for hook in plan["hooks"]] == [
        ("10-cache", True),
        ("20-database", True),
        ("30-open", False),
    ]
    assert "is not" in plan["obstacle"] or "needs root" in plan["obstacle"]
    page = [line.split() for line in _page(plan)]
    assert [row[0] for row in page if row and row[0][:3] in ("10-", "20-", "30-")] == [
        *("10-cache", "20-database", "30-open")
    ]
