# SPDX-License-Identifier: Apache-2.0
"""The power effects, with commands of the test in the place of the system's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.power import COMMANDS, PowerAction, RehearsedPower, ShutdownOrder, SystemPower

Script = Callable[..., str]
OFF = ShutdownOrder(PowerAction.OFF)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """script(name, body) -> the path of a program that notes how it was called and then does ``body``."""

    def make(name: str, body: str = "") -> str:
        path = tmp_path / name
        path.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$0" "$@" >> {tmp_path}/calls\n{body}\n', encoding="utf-8"
        )
        path.chmod(0o755)
        return str(path)

    return make


def calls(tmp_path: Path) -> list[str]:
    return [Path(line).name for line in (tmp_path / "calls").read_text().splitlines()]


def power_with(*commands: tuple[str, ...], states: Path | None = None, patience: float = 30) -> SystemPower:
    """A SystemPower that knows no real command."""
    return SystemPower(
        dict.fromkeys(PowerAction, commands), sleep_states=str(states or "/nowhere"), patience=patience
    )


def test_the_first_command_that_works_ends_the_search(script: Script, tmp_path: Path) -> None:
    power = power_with((script("good"), "now"), (script("other"),))
    power.act(OFF)
    assert calls(tmp_path) == ["good", "now"]


def test_commands_that_are_missing_fail_or_hang_give_way_to_the_next(script: Script, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    power = power_with((missing,), (script("bad", "exit 1"),), (script("good"),))
    power.act(OFF)
    assert calls(tmp_path) == ["bad", "good"]
    hanging = power_with((script("hanging", "exec sleep 600"),), (script("late"),), patience=0.2)
    hanging.act(OFF)
    assert calls(tmp_path)[-1] == "late"


def test_if_none_works_the_error_says_why(script: Script, tmp_path: Path) -> None:
    power = power_with((str(tmp_path / "missing"),), (script("bad", "echo not today >&2; exit 3"),))
    with pytest.raises(EffectError, match=r"missing.*exit status 3 not today"):
        power.act(OFF)


def test_systemctl_is_told_the_message_and_the_force(script: Script, tmp_path: Path) -> None:
    power = power_with((script("systemctl"), "poweroff"))
    power.act(ShutdownOrder(PowerAction.OFF, force=True, text="going\0down\n; reboot"))
    assert calls(tmp_path) == [
        "systemctl",
        "poweroff",
        "--ignore-inhibitors",
        "--message=going down ; reboot",
    ]
    (tmp_path / "calls").unlink()
    power.act(ShutdownOrder(PowerAction.HIBERNATE, text="good night"))
    assert calls(tmp_path) == ["systemctl", "poweroff"]


def test_an_action_is_supported_if_a_command_is_there(script: Script, tmp_path: Path) -> None:
    assert power_with((str(tmp_path / "missing"),), (script("there"),)).supports(PowerAction.OFF)
    assert not power_with((str(tmp_path / "missing"),)).supports(PowerAction.RESTART)


def test_hibernation_needs_the_kernel_too(script: Script, tmp_path: Path) -> None:
    states = tmp_path / "state"
    power = power_with((script("there"),), states=states)
    assert not power.supports(PowerAction.HIBERNATE)
    states.write_text("freeze mem\n", encoding="utf-8")
    assert not power.supports(PowerAction.HIBERNATE)
    states.write_text("freeze mem disk\n", encoding="utf-8")
    assert power.supports(PowerAction.HIBERNATE)


def test_every_action_has_commands() -> None:
    assert set(COMMANDS) == set(PowerAction)
    assert all(command for commands in COMMANDS.values() for command in commands)


def test_a_rehearsal_records_the_orders() -> None:
    power = RehearsedPower()
    assert all(power.supports(action) for action in PowerAction)
    order = ShutdownOrder(PowerAction.RESTART, force=True, reason=0x80000000, timeout=30, text="maintenance")
    power.act(order)
    assert power.orders == [order]
