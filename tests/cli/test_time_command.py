# SPDX-License-Identifier: Apache-2.0
"""`hvring time`, over a VMBus of files and a PTP clock of the test's own."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from hvring.cli import main, time_agents
from hvring.cli import time as command
from hvring.guest.ptp import read_clock
from hvring.host.testing import ThreadedHost, running_host
from hvring.host.timing import Timing
from hvring.transport.sysfs import UIO_DRIVER
from hvring.vmbus import BY_NAME

SECOND = 10**9
OF_AGENTS = ("mode", "bias_ns", "delay_known", "leap", "stratum", "pauses", "fed", "held_back", "refusal")
TIMESYNC = BY_NAME["timesync"].instance_guid


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., int]:
    where = ["--sysfs", str(tmp_path / "sys"), "--dev", str(tmp_path / "dev")]
    return lambda *words: main(["time", *words, *where])


@pytest.fixture
def clock(bus, tmp_path: Path, monkeypatch) -> Callable[..., None]:
    """hv_utils has timesync; its clock is ``ahead`` seconds ahead, or gives an error number."""
    bus.offer("timesync", "hv_utils")
    directory = tmp_path / "sys/class/ptp/ptp0"
    directory.mkdir(parents=True)
    (directory / "clock_name").write_text("hyperv\n")
    (tmp_path / "dev/ptp0").touch()

    def make(ahead: float = 0.0, error: int = 0) -> None:
        def show(_: int) -> int:
            if error:
                raise OSError(error, os.strerror(error))
            return time.time_ns() + int(ahead * SECOND)

        monkeypatch.setattr(command, "read_clock", partial(read_clock, show=show))

    return make


def test_a_reading_for_people(call, clock, capsys, tmp_path: Path) -> None:
    clock(ahead=-3)
    assert call() == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["clock", "offset", "uncertainty", "age", "quality"]
    assert str(tmp_path / "dev/ptp0") in lines["clock"]
    assert lines["offset"].endswith("s: the host is behind this machine")
    assert lines["quality"] == "samples come"


def test_a_reading_for_programs(call, clock, capsys, tmp_path: Path) -> None:
    clock(ahead=3)
    assert call("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert abs(found.pop("offset_ns") - 3 * SECOND) <= found.pop("uncertainty_ns")
    assert found == {
        "quality": "samples come",
        "clock": str(tmp_path / "dev/ptp0"),
        "age": None,
        "age_at_most": 600.0,
        "why": None,
        **dict.fromkeys(OF_AGENTS),
    }


def test_a_clock_without_samples_says_so(call, clock, capsys) -> None:
    clock(error=errno.ESTALE)
    assert call() == 1
    assert "has not told the time for more than 600 s: see the VM's settings" in capsys.readouterr().err
    assert call("--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["quality"], found["offset_ns"], found["age_at_most"]) == ("no samples", None, None)


def test_a_clock_that_cannot_be_read_says_so(call, clock, capsys, monkeypatch) -> None:
    clock(error=errno.EACCES)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert call() == 1
    assert "Permission denied; as a rule only root may read it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("driver", "state", "says"),
    [
        ("hv_utils", "3", "hv_utils has timesync, but made no PTP clock: `modprobe ptp`"),
        (UIO_DRIVER, "3", "which measures by itself (`hvring run timesync --json`)"),
        (
            UIO_DRIVER,
            "2",
            "and not served, and the kernel has no clock of it meanwhile: `hvring unbind timesync`",
        ),
        (None, "0", "no driver has timesync: `modprobe hv_utils`"),
        ("nobody offers it", "", "the host does not offer timesync: switch it on"),
    ],
)
def test_where_there_is_no_clock_it_is_said_why_and_what_to_do(
    bus, call, capsys, driver: str | None, state: str, says: str
) -> None:
    if state:
        bus.offer("timesync", driver)
        bus.set(TIMESYNC, "state", state)
    assert call() == 1
    assert says in capsys.readouterr().err
    assert call("--json") == 1
    assert json.loads(capsys.readouterr().out)["quality"] == "absent"


def test_off_hyper_v(call, capsys) -> None:
    assert call() == 1
    assert "no Hyper-V guest" in capsys.readouterr().err


def test_a_watch_sees_messages_come(bus, clock, capsys, tmp_path: Path) -> None:
    """The kernel counts the host's interrupts; the first count says nothing of when they came."""
    clock(ahead=1)
    path = tmp_path / "sys/bus/vmbus/devices" / TIMESYNC / "channels/7"
    path.mkdir(parents=True)
    counts = iter([10, 10, 11, 11, None])
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        count = next(counts)
        if count is None:
            raise KeyboardInterrupt
        (path / "interrupts").write_text(f"{count}\n")

    with pytest.raises(KeyboardInterrupt):
        command.watch(bus, 2.0, True, sleep=sleep, monotonic=lambda: now)
    ages = [json.loads(line)["age"] for line in capsys.readouterr().out.splitlines()]
    assert ages == [None, None, None, 0.0, 2.0]


def test_a_watch_goes_on_when_there_is_nothing_to_read(bus, clock, capsys) -> None:
    clock(error=errno.ESTALE)
    rounds = iter([None, None])

    def sleep(_: float) -> None:
        if next(rounds, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command.watch(bus, 1.0, False, sleep=sleep)
    assert capsys.readouterr().out.count("no samples: the host has not told the time") == 3


@pytest.mark.parametrize("word", ["0", "-1", "nan"])
def test_a_watch_needs_a_time_between_two_looks(call, capsys, word: str) -> None:
    with pytest.raises(SystemExit) as end:
        call(f"--watch={word}")
    assert end.value.code == 2


# ------------------------------------------------------------------------------------------ an agent has it


@pytest.fixture
def agent() -> Iterator[tuple[ThreadedHost, str]]:
    """A real `hvring run timesync`, in a rehearsal, and where it listens; its host is 5 s ahead."""
    with tempfile.TemporaryDirectory(prefix="hvring-") as directory:
        timing = Timing(timesync_interval=0.05)
        path = f"{directory}/control"
        with running_host(f"{directory}/host", ["timesync"], timing=timing) as host:
            host.timesync.skew_ns = 5 * SECOND
            command = [sys.executable, "-m", "hvring", "run", "timesync", "--virtual", f"{directory}/host"]
            process = subprocess.Popen([*command, "--control", path], stdout=subprocess.DEVNULL)
            try:
                host.do(host.wait_ready("timesync"))
                yield host, path
            finally:
                process.terminate()
                process.wait(30)


def test_an_agent_is_asked_where_it_has_timesync(agent, call, capsys) -> None:
    host, path = agent
    host.do(host.timesync.sample())
    assert call("--control", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    # Without the counter, which is not there outside of Hyper-V, it may be further ahead, and not less.
    assert not found["delay_known"]
    assert found["offset_ns"] <= 5 * SECOND <= found["offset_ns"] + found["uncertainty_ns"] + SECOND // 1000
    assert (found["mode"], found["leap"], found["stratum"], found["quality"]) == (
        "observe",
        0,
        0,
        "samples come",
    )
    assert found["age"] >= 0
    assert call("--control", path) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["mode"] == "observe"
    assert lines["uncertainty"].endswith("that the host may be further ahead")


def test_what_agents_know_comes_with_their_processes(agent) -> None:
    host, path = agent
    (found,) = time_agents.agents(path)
    assert (found.path, found.facts["mode"]) == (path, "observe")
    assert os.path.exists(f"/proc/{found.pid}")


def test_an_agent_that_is_not_there_is_said(call, capsys, tmp_path: Path) -> None:
    assert call("--control", str(tmp_path / "none")) == 1
    assert "no agent at" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer", [b"", b"{}\n", b"[]\n", b'{"result": {}}\n', b'{"result": {"services": {"timesync": 1}}}\n']
)
def test_what_is_no_agent_is_none(answer: bytes, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(answer)

        stranger = threading.Thread(target=serve)
        stranger.start()
        assert time_agents.agents(str(tmp_path / "s")) == []
        stranger.join()
