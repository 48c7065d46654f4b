# SPDX-License-Identifier: Apache-2.0
"""The power effects, with commands of the test in the place of the system's."""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.power import (
    COMMANDS,
    WAYS,
    KnowsObstacles,
    Places,
    PowerAction,
    RehearsedPower,
    ShutdownOrder,
    SystemPower,
)
from hvring.pending import Pending, settle

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


def power_with(*commands: tuple[str, ...], timeout: float = 30, **places: str) -> SystemPower:
    """A SystemPower that knows no real command."""
    nowhere = dict.fromkeys(("sysfs", "proc", "inhibitors", "bus", "run"), "/nowhere")
    return SystemPower(
        dict.fromkeys(PowerAction, commands),
        ways=("command",),
        timeout=timeout,
        places=Places(**(nowhere | places)),
    )


def test_the_first_command_that_works_ends_the_search(script: Script, tmp_path: Path) -> None:
    power = power_with((script("good"), "now"), (script("other"),))
    settle(power.act(OFF))
    assert calls(tmp_path) == ["good", "now"]


def test_commands_that_are_missing_fail_or_hang_give_way_to_the_next(script: Script, tmp_path: Path) -> None:
    missing, no_program = str(tmp_path / "missing"), tmp_path / "no_program"
    no_program.write_bytes(b"\x7fELF")
    no_program.chmod(0o755)
    power = power_with((missing,), (str(no_program),), (script("bad", "exit 1"),), (script("good"),))
    settle(power.act(OFF))
    assert calls(tmp_path) == ["bad", "good"]
    for seconds in (0.2, 5.0, 30.0):  # a busy machine may need more for the one that works
        hanging = power_with((script("hanging", "exec sleep 600"),), (script("late"),), timeout=seconds)
        with suppress(EffectError):
            settle(hanging.act(OFF))
            break
    else:
        pytest.fail("the second one was not given its time")
    assert calls(tmp_path)[-1] == "late"


def test_if_none_works_the_error_says_why(script: Script, tmp_path: Path) -> None:
    killed = script("killed", "kill -9 $$")
    bad = script("bad", "echo not today >&2; exit 3")
    power = power_with((str(tmp_path / "missing"),), (killed,), (bad,))
    with pytest.raises(EffectError, match=r"missing: not found.*killed by signal 9.*exit status 3 not today"):
        settle(power.act(OFF))
    hanging = power_with((script("hanging", "exec sleep 600"),), timeout=0.05)
    with pytest.raises(EffectError, match=r"hanging: did not end in time"):
        settle(hanging.act(OFF))


def test_what_cannot_even_be_tried_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(EffectError, match=r"cannot power off: no /.*missing"):
        power_with((str(tmp_path / "missing"),)).act(OFF)


def descriptors_now() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_the_caller_goes_on_while_a_command_runs_and_nothing_is_left_behind(
    script: Script, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "go")
    gc.collect()  # what other tests left
    descriptors, before = descriptors_now(), children()
    power = power_with((script("slow", f"read line < {tmp_path}/go; exit $line"),), (script("next"),))
    pending = power.act(OFF)
    assert isinstance(pending, Pending)
    assert pending.at > time.monotonic()
    again = pending.resume()  # too early does no harm
    assert isinstance(again, Pending)
    (tmp_path / "go").write_text("7\n")
    settle(again)
    assert calls(tmp_path) == ["slow", "next"]
    assert (descriptors_now(), children()) == (descriptors, before)


def test_who_does_not_want_to_know_does_not_stop_it(script: Script, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    os.mkfifo(tmp_path / "done")
    gc.collect()  # what other tests left
    descriptors, before = descriptors_now(), children()
    power = power_with((script("slow", f"read line < {tmp_path}/go; echo $line > {tmp_path}/done"),))
    pending = power.act(OFF)
    pending.cancel()
    assert descriptors_now() == descriptors
    (tmp_path / "go").write_text("went on\n")
    assert (tmp_path / "done").read_text() == "went on\n"
    (left,) = power._going.left
    os.waitid(os.P_PID, left, os.WEXITED | os.WNOWAIT)
    again = power.act(OFF)  # the next order waits for its end
    assert power._going.left == []
    (tmp_path / "go").write_text("again\n")
    assert (tmp_path / "done").read_text() == "again\n"
    settle(again)
    assert children() == before


def test_a_kernel_without_descriptors_of_processes_is_asked_now_and_then(
    script: Script, tmp_path: Path, monkeypatch
) -> None:
    def none(pid: int) -> int:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(os, "pidfd_open", none)
    power = power_with((script("bad", "exit 1"),), (script("good"),))
    settle(power.act(OFF))
    assert calls(tmp_path) == ["bad", "good"]


def test_a_command_may_say_as_much_as_it_likes(script: Script) -> None:
    power = power_with(
        (script("chatty", "head -c 300000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 1"),)
    )
    with pytest.raises(EffectError, match=r"the end$") as caught:
        settle(power.act(OFF))
    assert len(str(caught.value)) < 1200


def test_systemctl_is_told_the_message_and_the_force(script: Script, tmp_path: Path) -> None:
    power = power_with((script("systemctl"), "poweroff"))
    settle(power.act(ShutdownOrder(PowerAction.OFF, force=True, text="going\0down\n; reboot")))
    assert calls(tmp_path) == [
        "systemctl",
        "poweroff",
        "--ignore-inhibitors",
        "--message=going down ; reboot",
    ]
    (tmp_path / "calls").unlink()
    settle(power.act(ShutdownOrder(PowerAction.HIBERNATE, text="good night")))
    assert calls(tmp_path) == ["systemctl", "poweroff"]


def test_an_action_is_supported_if_a_command_is_there(script: Script, tmp_path: Path) -> None:
    assert power_with((str(tmp_path / "missing"),), (script("there"),)).supports(PowerAction.OFF)
    assert not power_with((str(tmp_path / "missing"),)).supports(PowerAction.RESTART)


def test_the_text_of_a_host_may_be_anything(script: Script, tmp_path: Path) -> None:
    power = power_with((script("systemctl"), "poweroff"))
    settle(power.act(ShutdownOrder(PowerAction.OFF, text="\ud800 --force \0 `reboot` $(reboot)\U0001f600")))
    assert calls(tmp_path)[2:] == ["--message=? --force `reboot` $(reboot)\U0001f600"]


@pytest.fixture
def machine(tmp_path: Path, script: Script) -> Callable[[], SystemPower]:
    """One that can hibernate; the tests take something away."""
    for path, text in {
        "sys/power/state": "freeze mem disk\n",
        "sys/power/disk": "[platform] shutdown reboot suspend test_resume\n",
        "sys/power/resume": "8:2\n",
        "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
        "sys/bus/vmbus/hibernation": "1\n",
        "sys/bus/vmbus/drivers/uio_hv_generic/new_id": "",
        "proc/swaps": "Filename Type Size Used Priority\n/dev/sda2 partition 4000000 1000000 -2\n",
        "proc/meminfo": "MemTotal: 8000000 kB\nActive(anon):    2900000 kB\nActive(file): 9000000 kB\n",
        "inhibit/7": "WHAT=handle-lid-switch\nMODE=block\nWHO=GNOME\nWHY=lid\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    os.mkfifo(tmp_path / "inhibit/7.ref")
    places = {"sysfs": tmp_path / "sys", "proc": tmp_path / "proc", "inhibitors": tmp_path / "inhibit"}
    there = script("there")
    return lambda: power_with((there,), **{name: str(path) for name, path in places.items()})


def test_hibernation_is_promised_where_nothing_is_in_the_way(machine) -> None:
    assert machine().obstacle(ShutdownOrder(PowerAction.HIBERNATE)) is None
    assert machine().supports(PowerAction.HIBERNATE)


BOUND = "sys/bus/vmbus/drivers/uio_hv_generic/"


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("sys/power/state", "freeze mem\n", "no `disk`"),
        ("sys/power/state", None, "no `disk`"),
        ("sys/power/disk", "[disabled]\n", "disabled"),
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n", "locked down"),
        ("sys/bus/vmbus/hibernation", "0\n", "host"),
        (f"{BOUND}242ff919-07db-4180-9c2e-b86cb68c8c55", "", "a device is bound.*hvring unbind"),
        ("proc/swaps", "Filename Type Size Used Priority\n", "no swap"),
        ("proc/swaps", None, "no swap"),
        ("proc/swaps", "Filename\n/dev/zram0 partition 9000000 0 100\n", "no swap"),
        ("proc/swaps", "Filename\n/swapfile file 1000000 1000000 -2\n", "no swap"),
        ("proc/swaps", "Filename\n/swapfile file 2048000 0 -2\n", "2000 MiB"),
        ("sys/power/resume", "0:0\n", "resume="),
    ],
)
def test_hibernation_is_not_promised_where_it_would_fail(machine, tmp_path, path, text, says: str) -> None:
    if text is None:
        (tmp_path / path).unlink()
    else:
        (tmp_path / path).write_text(text)
    power = machine()
    assert not power.supports(PowerAction.HIBERNATE)
    why = power.obstacle(ShutdownOrder(PowerAction.HIBERNATE, force=True))
    assert why is not None
    assert re.search(says, why)
    assert power.supports(PowerAction.OFF), "that needs none of it"


def test_with_uefi_nobody_has_to_configure_where_to_resume_from(machine, tmp_path: Path) -> None:
    (tmp_path / "sys/power/resume").write_text("0:0\n")
    (tmp_path / "sys/firmware/efi").mkdir(parents=True)
    assert machine().supports(PowerAction.HIBERNATE)


def test_another_file_of_sleep_states_may_be_named(machine, script: Script, tmp_path: Path) -> None:
    states = tmp_path / "states"
    states.write_text("mem\n")
    power = power_with(
        (script("there"),), sysfs=str(tmp_path / "sys"), proc=str(tmp_path / "proc"), sleep_states=str(states)
    )
    assert not power.supports(PowerAction.HIBERNATE)


@pytest.mark.parametrize(
    ("what", "mode", "refused"),
    [
        ("shutdown", "block", {PowerAction.OFF, PowerAction.RESTART}),
        ("sleep:shutdown", "block", set(PowerAction)),
        ("sleep", "block", {PowerAction.HIBERNATE}),
        ("shutdown:sleep", "delay", set()),
        ("idle", "block", set()),
    ],
)
def test_a_program_that_forbids_it_is_asked_before_the_host_is_promised_anything(
    machine, tmp_path: Path, what: str, mode: str, refused: set[PowerAction]
) -> None:
    lock = (
        f"# This is private data. Do not parse.\nWHAT={what}\nMODE={mode}\nWHO=Upgrades\nWHY=Stop it first\n"
    )
    (tmp_path / "inhibit/12").write_text(lock)
    power = machine()
    assert {action for action in PowerAction if not power.supports(action)} == refused
    for action in refused:
        assert power.obstacle(ShutdownOrder(action)) == "Upgrades forbids it: Stop it first"
        assert power.obstacle(ShutdownOrder(action, force=True)) is None


def test_who_can_say_what_is_in_the_way() -> None:
    assert isinstance(power_with(), KnowsObstacles)
    assert isinstance(RehearsedPower(), KnowsObstacles)
    assert power_with().obstacle(OFF) == "there is no way: no command"


def test_every_action_has_commands() -> None:
    assert SystemPower()._ways == WAYS
    assert set(COMMANDS) == set(PowerAction)
    assert all(command for commands in COMMANDS.values() for command in commands)


def test_a_rehearsal_records_the_orders() -> None:
    power = RehearsedPower()
    assert all(power.supports(action) for action in PowerAction)
    order = ShutdownOrder(PowerAction.RESTART, force=True, reason=0x80000000, timeout=30, text="maintenance")
    power.act(order)
    assert power.orders == [order]
