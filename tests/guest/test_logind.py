# SPDX-License-Identifier: Apache-2.0
"""The way over logind, with one of the test's on a bus of the test's; a real one is in tests/systemd."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hvring.errors import EffectError
from hvring.guest.power import Places, PowerAction, ShutdownOrder, SystemPower
from hvring.pending import Pending, settle
from hvring.reasons import Reason

pytest.importorskip("jeepney")

OFF, RESTART, HIBERNATE = PowerAction.OFF, PowerAction.RESTART, PowerAction.HIBERNATE
WELL = {
    "CanPowerOff": "yes",
    "CanReboot": "yes",
    "CanHibernate": "yes",
    "Inhibit": "lock",
    "PowerOffWithFlags": "",
    "RebootWithFlags": "",
    "HibernateWithFlags": "",
    "PreparingForShutdown": True,
    "PreparingForSleep": True,
}


class Logind:
    """``lines``: what it was asked; ``path``: of its bus."""

    def __init__(self, bus: str, answers: dict[str, Any]) -> None:
        self.path = bus
        program = str(Path(__file__).with_name("fake_logind.py"))
        self.process = subprocess.Popen(
            [sys.executable, program, f"unix:path={bus}", json.dumps(answers)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def lines(self, number: int) -> list[str]:
        return [self.line() for _ in range(number)]

    def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[str]:
    """The socket of a message bus of the test's own."""
    program = shutil.which("dbus-daemon")
    if program is None:
        pytest.skip("needs dbus-daemon")
    settings = tmp_path / "bus.conf"
    settings.write_text(
        "<!DOCTYPE busconfig PUBLIC '-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN'"
        " 'http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd'>"
        f"<busconfig><listen>unix:path={tmp_path}/bus</listen><policy context='default'><allow own='*'/>"
        "<allow send_destination='*'/><allow receive_sender='*'/></policy></busconfig>"
    )
    words = [program, f"--config-file={settings}", "--nofork", "--nopidfile", "--print-address"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline()
        yield f"{tmp_path}/bus"
        daemon.kill()


@pytest.fixture
def logind(bus: str) -> Iterator[Callable[..., Logind]]:
    """logind(**answers) -> one that does what it is told but for these answers; None leaves one away"""
    running: list[Logind] = []

    def make(*without: str, **answers: Any) -> Logind:
        told = {name: answer for name, answer in (WELL | answers).items() if name not in without}
        running.append(Logind(bus, told))
        return running[-1]

    yield make
    for one in running:
        one.close()


def descriptors_now() -> int:
    return len(os.listdir("/proc/self/fd"))


def power(bus: str, timeout: float = 30.0) -> SystemPower:
    return SystemPower(ways=("logind",), timeout=timeout, places=Places(bus=bus, inhibitors="/nowhere"))


@pytest.mark.parametrize(
    ("action", "method", "what"),
    [(OFF, "PowerOff", "shutdown"), (RESTART, "Reboot", "shutdown"), (HIBERNATE, "Hibernate", "sleep")],
)
def test_it_is_begun_under_a_lock_which_is_given_back_after_the_answer(logind, action, method, what) -> None:
    fake = logind()
    begun = settle(power(fake.path).act(ShutdownOrder(action)))
    assert begun is not None
    prepared = f"PreparingFor{what.title()}"
    assert fake.lines(4) == [
        f"Can{method}",
        f"Inhibit {what} hvring The host is being told delay",
        f"{method}WithFlags 1",  # root asks for locks, too
        f"{prepared} org.freedesktop.login1.Manager {prepared}",
    ]
    begun()
    assert fake.line() == "released"


def test_with_force_locks_do_not_count(logind) -> None:
    fake = logind()
    settle(power(fake.path).act(ShutdownOrder(OFF, force=True)))
    assert fake.lines(3)[-1] == "PowerOffWithFlags 16"


def test_older_ones_are_told_in_their_own_words(logind) -> None:
    older = logind(PowerOffWithFlags={"0": ""})  # knows no such flag
    settle(power(older.path).act(ShutdownOrder(OFF, force=True)))
    assert older.lines(4)[2:] == ["PowerOffWithFlags 16", "PowerOffWithFlags 0"]
    older.close()
    oldest = logind("PowerOffWithFlags", PowerOff="")
    settle(power(oldest.path).act(ShutdownOrder(OFF)))
    assert oldest.lines(4)[2:] == ["PowerOffWithFlags 1", "PowerOff False"]


def test_what_is_under_way_already_is_begun(logind) -> None:
    fake = logind(PowerOffWithFlags="org.freedesktop.login1.OperationInProgress")
    assert settle(power(fake.path).act(ShutdownOrder(OFF))) is not None


@pytest.mark.parametrize(
    ("answers", "says", "reason"),
    [
        ({"CanHibernate": "na"}, "logind cannot hibernate here: na", Reason.CANNOT_HIBERNATE),
        (
            {"HibernateWithFlags": "org.freedesktop.login1.BlockedByInhibitorLock"},
            "not HibernateWithFlags",
            Reason.INHIBITED,
        ),
        (
            {"HibernateWithFlags": "org.freedesktop.DBus.Error.AccessDenied"},
            "not HibernateWithFlags",
            Reason.PERMISSION_DENIED,
        ),
        ({"PreparingForSleep": False}, "agreed and did not begin", Reason.COMMAND_FAILED),
    ],
)
def test_what_is_not_begun_is_an_error_and_leaves_no_lock(logind, answers, says: str, reason: Reason) -> None:
    fake = logind(**answers)
    gc.collect()  # what other tests left
    descriptors = descriptors_now()
    with pytest.raises(EffectError, match=says) as caught:
        settle(power(fake.path).act(ShutdownOrder(HIBERNATE)))
    assert caught.value.reason is reason
    assert descriptors_now() == descriptors
    assert fake.line() == "CanHibernate"
    if reason is not Reason.CANNOT_HIBERNATE:
        assert fake.line().startswith("Inhibit")
        while (heard := fake.line()) != "released":
            assert heard


@pytest.mark.parametrize(
    ("silent", "before"),
    [("CanHibernate", 0), ("PreparingForSleep", 3)],
)
def test_one_that_does_not_answer_is_waited_for_until_the_time_is_up_and_left_with_no_lock(
    logind, monkeypatch: pytest.MonkeyPatch, silent: str, before: int
) -> None:
    fake = logind(**{silent: None})
    gc.collect()  # what other tests left
    descriptors = descriptors_now()
    outcome = power(fake.path).act(ShutdownOrder(HIBERNATE))
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(fake.lines(before + 1)))
    listener.start()
    while listener.is_alive():
        assert isinstance(outcome, Pending)
        outcome = outcome.resume()
        time.sleep(0.01)
    assert heard[-1].startswith(silent)
    assert isinstance(outcome, Pending)
    late = time.monotonic() + 1000
    monkeypatch.setattr("hvring.guest.dbus.time", SimpleNamespace(monotonic=lambda: late))
    with pytest.raises(EffectError, match="no answer in time") as caught:
        outcome.resume()
    assert caught.value.reason is Reason.COMMAND_FAILED
    assert descriptors_now() == descriptors
    if before:
        assert fake.line() == "released"


def test_who_does_not_wait_for_the_answer_gives_all_back(logind) -> None:
    fake = logind(PreparingForShutdown=None)
    gc.collect()  # what other tests left
    descriptors = descriptors_now()
    outcome = power(fake.path).act(ShutdownOrder(OFF))
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(fake.lines(4)))
    listener.start()
    while listener.is_alive():
        assert isinstance(outcome, Pending)
        outcome = outcome.resume()
        time.sleep(0.01)
    assert isinstance(outcome, Pending)
    outcome.cancel()
    assert descriptors_now() == descriptors
    assert fake.line() == "released"


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"REJECTED\r\n",
        b"OK 1234\r\nERROR\r\n",
        b"\xff" * 9000,
        b"OK 1\r\nAGREE_UNIX_FD\r\n" + b"\xff" * 64,
    ],
)
def test_a_bus_that_is_none_is_an_error(says: bytes, tmp_path: Path) -> None:
    path = str(tmp_path / "bus")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as peer:
                peer.recv(1024)
                for line in says.splitlines(keepends=True) or [b""]:
                    try:
                        peer.sendall(line)
                        peer.recv(1024)
                    except OSError:
                        return

        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(EffectError, match="cannot power off: logind:"):
            settle(power(path, timeout=5.0).act(ShutdownOrder(OFF)))
        server.join()


def test_without_a_bus_the_way_is_not_there(tmp_path: Path) -> None:
    nowhere = power(str(tmp_path / "nowhere"))
    assert nowhere.obstacle(ShutdownOrder(OFF)) == "there is no way: no system bus for logind"
    with pytest.raises(EffectError, match="no system bus"):
        settle(nowhere.act(ShutdownOrder(OFF)))
