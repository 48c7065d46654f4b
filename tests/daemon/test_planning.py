# SPDX-License-Identifier: Apache-2.0
"""The process that makes the plan of a freeze, as a loop sees it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from hvring.agent.settings import KvpSettings, Settings, VssSettings
from hvring.daemon import planning
from hvring.daemon.control.protocol import ControlError
from hvring.daemon.planning import Planner

NOTHING = Settings(vss=VssSettings(only=["/nowhere"]), kvp=KvpSettings("/nowhere/pools"))


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(100):
            await main()

    before = children()
    asyncio.run(bounded())
    assert children() <= before  # nobody is left


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_one_plan_after_the_other_by_these_settings() -> None:
    async def main() -> None:
        planner = Planner()
        for _ in range(5):
            found = await planner.ask(NOTHING)
            assert found["order"] == []
            assert found["obstacle"] is None
            assert found["skipped"]

    run(main)


def test_two_at_the_same_time_are_one_too_many() -> None:
    async def main() -> None:
        planner = Planner()
        found = await asyncio.gather(planner.ask(NOTHING), planner.ask(NOTHING), return_exceptions=True)
        assert "order" in found[0]  # type: ignore[operator]
        assert isinstance(found[1], ControlError)
        assert found[1].kind == "busy"

    run(main)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print('nonsense')", "ended early"),
        ("pass", "ended early"),
        ("import os; os.kill(os.getpid(), 9)", "ended early"),
        ("""print('{"error": "the table cannot be read"}')""", "the table cannot be read"),
        ("while True: print('x' * 65536)", "ended early"),
    ],
)
def test_a_process_that_does_not_do_it_is_an_error_and_the_next_one_does(
    monkeypatch, program: str, words: str
) -> None:
    async def main() -> None:
        planner = Planner()
        with monkeypatch.context() as patch:
            patch.setattr(planning, "_PROGRAM", program)
            with pytest.raises(ControlError, match=words):
                await planner.ask(NOTHING)
        while True:  # one that was killed takes a moment
            try:
                found = await planner.ask(NOTHING)
            except ControlError as error:
                if error.kind != "busy":
                    raise
                await asyncio.sleep(0)
            else:
                break
        assert found["order"] == []

    run(main)


def test_one_that_hangs_is_given_up(monkeypatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(planning, "_PROGRAM", "import time; time.sleep(1000)")
        monkeypatch.setattr(planning, "TIMEOUT", 0.2)
        planner = Planner()
        with pytest.raises(ControlError, match="some mount hangs"):
            await planner.ask(NOTHING)
        while not planner._has_ended():
            await asyncio.sleep(0)

    run(main)


def test_without_an_interpreter_there_is_no_plan(monkeypatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(ControlError, match="no process can be started"):
            await Planner().ask(NOTHING)

    run(main)
