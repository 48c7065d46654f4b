# SPDX-License-Identifier: Apache-2.0
"""Telling the first process: with processes and pipes of the test's in its place."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.power import Places, PowerAction, ShutdownOrder, SystemPower
from hvring.pending import settle

OFF, RESTART, HIBERNATE = PowerAction.OFF, PowerAction.RESTART, PowerAction.HIBERNATE
First = Callable[..., tuple[Places, "subprocess.Popen[bytes]"]]


@pytest.fixture
def first(tmp_path: Path) -> Iterator[First]:
    """first(name) -> where a first process is that has this program, and the process: any signal ends it"""
    running = []

    def make(name: str, argv0: str = "/sbin/init") -> tuple[Places, subprocess.Popen[bytes]]:
        process = subprocess.Popen([shutil.which("sleep") or "sleep", "600"])
        running.append(process)
        (tmp_path / f"proc/{process.pid}").mkdir(parents=True)
        (tmp_path / f"proc/{process.pid}/exe").symlink_to(f"/sbin/{name}")
        (tmp_path / f"proc/{process.pid}/cmdline").write_bytes(argv0.encode() + b"\0/init\0")
        (tmp_path / "run").mkdir(exist_ok=True)
        places = Places(
            proc=str(tmp_path / "proc"),
            run=str(tmp_path / "run"),
            inhibitors="/nowhere",
            first=process.pid,
        )
        return places, process

    yield make
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("name", "action", "number"),
    [
        ("systemd", OFF, signal.SIGRTMIN + 4),
        ("systemd", RESTART, signal.SIGRTMIN + 5),
        ("busybox", OFF, signal.SIGUSR2),
        ("busybox", RESTART, signal.SIGTERM),
    ],
)
def test_it_is_told_by_its_own_signal_once_the_host_was_answered(first: First, name, action, number) -> None:
    places, process = first(name)
    begun = settle(SystemPower(ways=("init",), places=places).act(ShutdownOrder(action)))
    assert begun is not None
    assert process.poll() is None
    begun()
    assert process.wait(60) == -number


def test_sysvinit_reads_a_run_level_from_its_pipe(first: First, tmp_path: Path) -> None:
    places, process = first("init")
    os.mkfifo(tmp_path / "run/initctl")
    with open(os.open(tmp_path / "run/initctl", os.O_RDONLY | os.O_NONBLOCK), "rb") as pipe:
        begun = settle(SystemPower(ways=("init",), places=places).act(ShutdownOrder(RESTART)))
        assert begun is not None
        assert not pipe.read(1)
        begun()
        request = pipe.read()
    assert len(request) == 384
    assert struct.unpack_from("=iiii", request) == (0x03091969, 1, ord("6"), 0)
    assert process.poll() is None
    # and where nobody reads, nothing can be promised
    with pytest.raises(EffectError, match="initctl"):
        settle(SystemPower(ways=("init",), places=places).act(ShutdownOrder(OFF)))


@pytest.mark.parametrize(
    ("name", "argv0"),
    [
        *((name, "/sbin/init") for name in ("init", "runit", "bash", "python3.11", "systemd-nspawn")),
        ("busybox", "/bin/sh"),  # a script of a shell that is busybox
    ],
)
def test_one_that_is_not_known_is_told_nothing(first: First, name: str, argv0: str) -> None:
    places, process = first(name, argv0)
    power = SystemPower(ways=("init",), places=places)
    assert power.obstacle(ShutdownOrder(OFF)) == (
        "there is no way: a first process that is none of systemd, busybox and sysvinit"
    )
    with pytest.raises(EffectError):
        settle(power.act(ShutdownOrder(OFF)))
    assert process.poll() is None


def test_it_has_no_word_for_hibernation(first: First) -> None:
    places, _ = first("systemd")
    with pytest.raises(EffectError, match="no word for systemd to hibernate"):
        settle(SystemPower(ways=("init",), places=places).act(ShutdownOrder(HIBERNATE)))


def test_another_order_waits_until_the_first_has_come_to_nothing(first: First) -> None:
    places, _ = first("busybox")
    power = SystemPower(ways=("init",), places=places)
    settle(power.act(ShutdownOrder(OFF)))
    assert power.obstacle(ShutdownOrder(OFF)) is None, "a host may repeat itself"
    assert power.obstacle(ShutdownOrder(RESTART)) == "this machine is about to power off"


def test_a_way_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="there are logind, systemctl, init, command"):
        SystemPower(ways=("sysrq",))  # type: ignore[arg-type]
