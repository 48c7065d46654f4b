# SPDX-License-Identifier: Apache-2.0
"""hvring devices, bind, unbind, doctor and run on Hyper-V, over a VMBus of files."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hvring.agent import Opener
from hvring.cli import findings, main
from hvring.cli.findings import Level, examine
from hvring.cli.run_uio import line
from hvring.transport import kernels
from hvring.transport.binding import Binder
from hvring.transport.errors import NotBoundError
from hvring.transport.kernels import Kernel, parse
from hvring.transport.sysfs import UIO_DRIVER, Bus
from hvring.vmbus import BY_NAME, SERVICE_NAMES

KVP = BY_NAME["kvp"].instance_guid


@pytest.fixture
def here(bus, monkeypatch):
    """A bus whose kernel is a good one and hears also what the commands write."""
    monkeypatch.setattr(kernels, "running", lambda: Kernel("6.17.13", (6, 17, 13)))
    monkeypatch.setattr(Bus, "write", lambda self, path, text: bus.write(path, text))
    bus.load(UIO_DRIVER)
    return bus


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., int]:
    """A command of the machine whose bus is below ``tmp_path``, if there is one."""
    where = [
        "--sysfs",
        str(tmp_path / "sys"),
        "--dev",
        str(tmp_path / "dev"),
        "--state",
        str(tmp_path / "run"),
    ]
    return lambda *words: main([*words, *where])


def test_devices_is_a_table(here, call, capsys) -> None:
    here.offer("kvp", "hv_utils")
    here.offer("vss", UIO_DRIVER, monitor_id=3)
    here.offer("fcopy")
    assert call("devices") == 0
    head, kvp, vss, fcopy = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["SERVICE", "DRIVER", "NODE", "RING", "MONITOR", "STATE"]
    assert kvp.split()[:6] == ["kvp", "hv_utils", "-", "-", "-", "open"]
    assert vss.split()[:8] == ["vss", UIO_DRIVER, f"{here.dev}/uio0", "2", "x", "16", "KiB", "3"]
    assert fcopy.split()[1] == "-"
    assert kvp.index(KVP) == vss.index(BY_NAME["vss"].instance_guid), "columns"


def test_devices_is_json(here, call, capsys) -> None:
    here.offer("kvp", UIO_DRIVER)
    here.offer("11223344-5566-7788-99aa-bbccddeeff00", class_guid="11223344-5566-7788-99aa-bbccddeeff99")
    assert call("devices", "--json") == 0
    kvp, other = json.loads(capsys.readouterr().out)
    assert kvp == {
        "service": "kvp",
        "title": "kvp",
        "class": BY_NAME["kvp"].class_guid,
        "instance": KVP,
        "driver": UIO_DRIVER,
        "override": None,
        "node": f"{here.dev}/uio0",
        "ring_size": 16384,
        "maps": [32768, 4096, 4096],
        "monitor_id": None,
        "relid": 7,
        "state": 2,
    }
    assert other["service"] is None


def test_bind_and_unbind_do_what_they_can_and_say_what_they_cannot(here, call, capsys) -> None:
    here.offer("kvp", "hv_utils")
    here.offer("timesync", "hv_utils")
    assert call("bind", "kvp", "vss", "timesync") == 1
    said = capsys.readouterr()
    assert f"kvp: {UIO_DRIVER} {here.dev}/uio0" in said.out
    assert "PTP clock" in said.out
    assert "hvring bind: vss: the host does not offer vss" in said.err
    assert call("unbind", "kvp", "vss") == 1
    assert "kvp: hv_utils" in capsys.readouterr().out
    assert call("unbind", "--all") == 0
    assert "timesync: hv_utils" in capsys.readouterr().out
    assert call("unbind", "--all") == 0
    assert capsys.readouterr().out == ""


def test_unbind_all_goes_on_after_a_failure(here, call, capsys) -> None:
    here.offer("kvp", "hv_utils")
    here.offer("vss", "hv_utils")
    assert call("bind", "kvp", "vss") == 0
    here.set(KVP, "state", "3")
    assert call("unbind", "--all") == 1
    said = capsys.readouterr()
    assert "kvp open: stop it" in said.err
    assert "vss: hv_utils" in said.out


@pytest.mark.parametrize(
    "words", [["bind"], ["unbind", "--all", "kvp"], ["run", "kvp", "--bind", "--virtual", "x"]]
)
def test_words_that_do_not_fit(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2


@pytest.mark.parametrize("words", [["devices"], ["bind", "kvp"], ["unbind", "kvp"]])
def test_off_hyper_v_it_is_said_once(call, tmp_path: Path, capsys, words: list[str]) -> None:
    assert call(*words) == 1
    assert capsys.readouterr().err.count("there is no VMBus here") == 1
    assert not (tmp_path / "run").exists()


def test_doctor_off_hyper_v_says_so_and_ends_with_3(call, capsys) -> None:
    assert call("doctor") == 3
    assert "no Hyper-V guest" in capsys.readouterr().out


def test_doctor_knows_a_hyper_v_guest_without_vmbus(call, tmp_path: Path, capsys) -> None:
    dmi = tmp_path / "sys/class/dmi/id"
    dmi.mkdir(parents=True)
    (dmi / "sys_vendor").write_text("Microsoft Corporation\n")
    (dmi / "product_name").write_text("Virtual Machine\n")
    assert call("doctor") == 1
    assert "hv_vmbus" in capsys.readouterr().out


def test_doctor_is_fine_with_services_in_the_kernel(here, call, capsys) -> None:
    for name in SERVICE_NAMES:
        here.offer(name, "hv_utils")
    assert call("doctor") == 0
    out = capsys.readouterr().out
    assert out.count("hv_utils serves it") == 6
    assert "A bound service takes 4.2 MB of kernel memory, fcopy 0.0 MB; now 0.0 MB for 0." in out
    assert call("doctor", "--json") == 0
    assert {row["level"] for row in json.loads(capsys.readouterr().out)} <= {"ok", "note"}


def test_doctor_wants_a_bound_service_to_be_served(here, call, capsys) -> None:
    here.offer("kvp", UIO_DRIVER)
    assert call("doctor") == 1
    assert "nobody serves it" in capsys.readouterr().out


def _topic(bus, topic: str, release: str = "6.17.13", proc: str = "/proc", remembered=()) -> list:
    kernel = Kernel(release, parse(release))
    found = examine(bus, kernel, list(remembered), proc)
    return [(finding.level, finding.text) for finding in found if finding.topic == topic]


@pytest.mark.parametrize(
    ("release", "level", "says"),
    [
        ("6.1.0-50", Level.TODO, "6.10"),
        ("6.12.57", Level.TODO, "panic"),
        ("6.12.43", Level.NOTE, "mask"),
        ("6.17.13", Level.GOOD, "gives services"),
    ],
)
def test_what_doctor_says_of_kernels(here, release: str, level: Level, says: str) -> None:
    ((found, text),) = _topic(here, "kernel", release)
    assert found is level
    assert says in text


@pytest.mark.parametrize(
    ("available", "level", "says"),
    [(True, Level.GOOD, "hvring bind"), (None, Level.NOTE, "modprobe"), (False, Level.TODO, "install")],
)
def test_what_doctor_says_of_the_module(here, monkeypatch, available, level: Level, says: str) -> None:
    os.rmdir(here.driver(UIO_DRIVER))
    monkeypatch.setattr(findings.modules, "available", lambda *_: available)
    ((found, text),) = _topic(here, "module")
    assert found is level
    assert says in text


def test_doctor_counts_memory_and_sees_who_serves(here, tmp_path: Path) -> None:
    here.offer("kvp", UIO_DRIVER)
    here.set(KVP, "state", "3")
    ((_, text),) = _topic(here, "memory", "6.12.107")
    assert text.endswith("now 49.3 MB for 1.")
    proc = tmp_path / "proc/42"
    (proc / "fd").mkdir(parents=True)
    (proc / "comm").write_text("python3\n")
    ((level, text),) = _topic(here, "kvp", proc=str(tmp_path / "proc"))
    if os.geteuid() == 0:
        assert level is Level.TODO
        assert "only a restart" in text
    (proc / "fd/5").symlink_to(f"{here.dev}/uio0")
    assert _topic(here, "kvp", proc=str(tmp_path / "proc")) == [
        (Level.GOOD, f"It is bound ({here.dev}/uio0) and served by python3 (process 42).")
    ]


def test_doctor_sees_what_is_missing_left_over_and_lost(here) -> None:
    here.late_nodes = True
    here.offer("kvp", UIO_DRIVER)
    here.offer("timesync", UIO_DRIVER)
    here.offer("shutdown")
    assert _topic(here, "kvp") == [(Level.TODO, "It is bound, but its uio node is missing.")]
    assert "PTP clock" in _topic(here, "timesync")[1][1]
    assert "hvring bind shutdown" in _topic(here, "shutdown")[0][1]
    assert "confidential" in _topic(here, "vss")[0][1]
    assert "confidential" not in _topic(here, "heartbeat")[0][1]
    shutdown, gone = BY_NAME["shutdown"].instance_guid, BY_NAME["vss"].instance_guid
    assert "unbind --all" in _topic(here, "shutdown", remembered=[shutdown])[1][1]
    assert "gone" in _topic(here, gone, remembered=[gone])[0][1]


# ------------------------------------------------------------------------------------------ hvring run


def test_run_off_hyper_v_has_nothing_to_do_and_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(Bus, "present", False)
    assert main(["run"]) == 0
    assert "no Hyper-V guest" in capsys.readouterr().err


@pytest.fixture
def binder(here, tmp_path: Path) -> Binder:
    return Binder(here, state=tmp_path / "run")


def _line(binder: Binder, *names: str) -> tuple[list[str], list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    with line(list(names), False, lambda what, name, detail: told.append((what, name)), binder) as (
        serving,
        _,
    ):
        return serving, told


def test_run_without_anything_bound_says_what_to_do(here, binder) -> None:
    here.offer("kvp", "hv_utils")
    with pytest.raises(NotBoundError, match="hvring bind kvp"):
        _line(binder)


def test_run_serves_what_is_bound_or_named(here, binder) -> None:
    here.offer("kvp", UIO_DRIVER)
    here.offer("vss", "hv_utils")
    here.offer("fcopy", UIO_DRIVER)
    assert _line(binder) == (["kvp", "fcopy"], [])
    here.set(BY_NAME["fcopy"].instance_guid, "state", "3")
    assert _line(binder, "kvp", "vss", "shutdown", "fcopy") == (
        ["kvp", "vss", "shutdown", "fcopy"],
        [("waiting", "vss"), ("waiting", "shutdown"), ("waiting", "fcopy")],
    )
    assert here.written == []


def test_run_with_bind_takes_all_but_timesync_and_gives_back_what_it_took(here, binder) -> None:
    for name in ("timesync", "kvp", "vss"):
        here.offer(name, "hv_utils")
    binder.bind("vss")
    told: list[tuple[str, str]] = []
    with line([], True, lambda what, name, detail: told.append((what, name)), binder) as (serving, _):
        assert serving == ["kvp", "vss"]
        assert here.find("kvp").driver == UIO_DRIVER
        assert here.find("timesync").driver == "hv_utils"
    assert told == [("bound", "kvp"), ("bound", "vss")]
    assert here.find("kvp").driver == "hv_utils"
    assert here.find("vss").driver == UIO_DRIVER, "it was bound before"


def test_run_with_bind_opens_what_it_bound_and_gives_back_after_an_error_too(here, binder) -> None:
    class Stop(Exception):
        pass

    async def opened(opener: Opener) -> None:
        (await opener("kvp")).close()
        here.offer("vss", "hv_utils")  # offered only now, to the kernel's driver
        (await opener("vss")).close()

    here.offer("kvp", "hv_utils")
    with pytest.raises(Stop), line(["kvp", "vss"], True, lambda *_: None, binder) as (_, opener):
        asyncio.run(opened(opener))
        raise Stop
    assert [here.find(name).driver for name in ("kvp", "vss")] == ["hv_utils", "hv_utils"]
