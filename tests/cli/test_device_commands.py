# SPDX-License-Identifier: Apache-2.0
"""hvring devices, bind, unbind, doctor and run on Hyper-V, over a VMBus of files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hvring.cli import bind, devices, doctor, findings, main
from hvring.cli.findings import Level, examine
from hvring.transport.kernels import Kernel, parse
from hvring.transport.sysfs import UIO_DRIVER
from hvring.vmbus import BY_NAME, SERVICE_NAMES

KVP = BY_NAME["kvp"].instance_guid
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root sees who has a device open")


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


def test_devices_is_a_table(here, call, capsys, proc) -> None:
    here.offer("heartbeat", "hv_utils")
    here.offer("kvp", "hv_utils")
    here.offer("vss", UIO_DRIVER, monitor_id=3)
    here.offer("fcopy")
    assert call("devices") == 0
    head, heartbeat, kvp, vss, fcopy = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["SERVICE", "DRIVER", "NODE", "RING", "MONITOR", "STATE"]
    assert kvp.split()[:6] == ["kvp", "hv_utils", "-", "-", "-", "open"]
    assert vss.split()[:8] == ["vss", UIO_DRIVER, f"{here.dev}/uio0", "2", "x", "16", "KiB", "3"]
    assert fcopy.split()[1] == "-"
    assert kvp.index(KVP) == vss.index(BY_NAME["vss"].instance_guid), "columns"
    assert heartbeat.endswith(" the kernel")
    assert fcopy.endswith(" nobody")


@root
def test_devices_says_who_serves_by_which_way(here, call, capsys, proc) -> None:
    for name in ("kvp", "vss"):
        here.offer(name, "hv_utils")
    here.offer("fcopy", UIO_DRIVER)
    node = Path(here.utils_node("kvp"))
    node.parent.mkdir()
    node.touch()
    process(proc, 7, "hv_vss_daemon", "/dev/vmbus/hv_vss", unit="hv-vss-daemon.service")
    process(proc, 8, "python3", str(node), f"{here.dev}/uio0", unit="hvring.service")
    (proc / "8/cmdline").write_bytes(b"/usr/bin/python3\0-m\0hvring\0run\0")
    here.set(BY_NAME["fcopy"].instance_guid, "state", "3")
    assert call("devices") == 0
    _, kvp, vss, fcopy = capsys.readouterr().out.splitlines()
    assert kvp.endswith(" hvring (process 8, hvring.service) by utils")
    assert f" {node} " in kvp
    assert vss.endswith(" hv_vss_daemon (process 7, hv-vss-daemon.service) by utils")
    assert fcopy.endswith(" hvring (process 8, hvring.service) by uio")
    assert call("devices", "--json") == 0
    kvp, vss, _ = json.loads(capsys.readouterr().out)
    assert (kvp["node"], kvp["way"]) == (str(node), "utils")
    assert vss["served_by"] == [{"pid": 7, "name": "hv_vss_daemon", "unit": "hv-vss-daemon.service"}]


def test_devices_is_json(here, call, capsys, proc) -> None:
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
        "way": "uio",
        "served_by": [],
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


def test_bind_names_the_daemon_that_it_takes_the_device_from(here, call, capsys, proc, monkeypatch) -> None:
    monkeypatch.setattr(bind, "running", partial(bind.running, proc=str(proc)))
    process(proc, 7, "hv_kvp_daemon", unit="hv-kvp-daemon.service")
    here.offer("kvp", "hv_utils")
    here.offer("vss", "hv_utils")
    assert call("bind", "kvp", "vss") == 0
    said = capsys.readouterr().out
    assert "`systemctl mask --now hv-kvp-daemon.service`" in said
    assert "vss: hv" not in said


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


def process(proc: Path, pid: int, name: str, *files: str, unit: str = "") -> None:
    """A process in a /proc of files."""
    (proc / f"{pid}/fd").mkdir(parents=True)
    (proc / f"{pid}/comm").write_text(f"{name[:15]}\n")
    group = f"/system.slice/{unit}" if unit else "/"
    (proc / f"{pid}/cgroup").write_text(f"12:memory:/else\n1:name=systemd:{group}\n0::{group}\n")
    for number, file in enumerate(files):
        (proc / f"{pid}/fd/{number}").symlink_to(file)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch) -> Path:
    """No process runs but those that a test makes."""
    path = tmp_path / "proc"
    path.mkdir()
    monkeypatch.setattr(findings, "examine", partial(examine, proc=str(path)))
    monkeypatch.setattr(doctor, "examine", partial(examine, proc=str(path)))
    monkeypatch.setattr(devices, "server", partial(devices.server, proc=str(path)))
    monkeypatch.setattr(doctor, "examine_time", partial(doctor.examine_time, proc=str(path)))
    return path


def test_doctor_is_fine_with_services_in_the_kernel_and_their_daemons(here, call, capsys, proc) -> None:
    for name in SERVICE_NAMES:
        here.offer(name, "hv_utils")
    process(proc, 7, "hv_kvp_daemon", "/dev/null", "/dev/vmbus/hv_kvp", unit="hv-kvp-daemon.service")
    process(proc, 8, "hypervvssd", "/dev/vmbus/hv_vss")
    process(proc, 9, "hv_fcopy_daemon", "/dev/vmbus/hv_fcopy")
    assert call("doctor") == 0
    out = capsys.readouterr().out
    assert out.count("hv_utils serves it by itself") == 3
    assert "hv_utils and hv_kvp_daemon (process 7, hv-kvp-daemon.service) serve it" in out
    assert "systemctl mask --now hv-kvp-daemon.service" in out
    assert "hv_utils and hypervvssd (process 8) serve it" in out
    assert "A bound service takes 4.2 MB of kernel memory, fcopy 0.0 MB; now 0.0 MB for 0." in out
    assert call("doctor", "--json") == 0
    assert {row["level"] for row in json.loads(capsys.readouterr().out)} <= {"ok", "note"}


def test_doctor_wants_a_bound_service_to_be_served(here, call, capsys) -> None:
    here.offer("kvp", UIO_DRIVER)
    assert call("doctor") == 1
    assert "nobody serves it" in capsys.readouterr().out


def _topic(bus, topic: str, release: str = "6.17.13", proc: str = "", remembered=()) -> list:
    """What is said about ``topic``; no ``proc``: a directory without processes."""
    kernel = Kernel(release, parse(release))
    found = examine(bus, kernel, list(remembered), proc or bus.sysfs)
    return [(finding.level, finding.text) for finding in found if finding.topic == topic]


@pytest.mark.parametrize(
    ("release", "level", "says"),
    [
        ("6.1.0-50", Level.NOTE, "over hv_utils's devices"),
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


@root
@pytest.mark.parametrize("name", ["kvp", "vss", "fcopy"])
def test_the_kernels_driver_alone_does_not_serve_what_needs_a_daemon(here, call, capsys, proc, name) -> None:
    here.offer(name, "hv_utils")
    assert call("doctor") == 1
    assert f"nobody has /dev/vmbus/hv_{name} open, so nobody serves it" in capsys.readouterr().out
    facts = BY_NAME[name]
    process(proc, 7, facts.daemons[-1], "/dev/null", unit=facts.units[1])
    assert call("doctor") == 1, "it runs, but has not got the device"
    assert f"(process 7, {facts.units[1]}) runs, but without it" in capsys.readouterr().out
    process(proc, 8, "python3", f"{here.dev}/vmbus/hv_{name}")
    assert call("doctor") == 0, "whatever program has it open serves it"
    assert "python3 (process 8)" in capsys.readouterr().out


@root
def test_doctor_of_a_service_that_hvring_serves_over_an_old_kernels_device(here, proc) -> None:
    here.offer("vss", "hv_utils")
    process(proc, 8, "hvring", "/dev/vmbus/hv_vss", unit="hvring.service")
    served = (Level.GOOD, "The kernel's hv_utils and hvring (process 8, hvring.service) serve it.")
    assert _topic(here, "vss", proc=str(proc)) == [served]
    (first, *notes) = _topic(here, "vss", "4.18.0", str(proc))
    assert first == served
    assert [level for level, _ in notes] == [Level.NOTE] * 2
    assert "hibernates" in notes[1][1]
    assert "update it" in _topic(here, "vss", "5.14.0-70", str(proc))[1][1]


@root
def test_doctor_names_the_unit_that_this_machine_has(here, proc, tmp_path: Path) -> None:
    here.offer("kvp", "hv_utils")
    (tmp_path / "units").mkdir()
    (tmp_path / "units/hypervkvpd.service").touch()
    found = examine(here, Kernel("6.12.107", (6, 12, 107)), [], str(proc), [str(tmp_path / "units")])
    (text,) = [finding.text for finding in found if finding.topic == "kvp"]
    assert "`systemctl enable --now hypervkvpd.service`" in text


def test_a_user_who_is_not_root_is_told_what_can_be_seen(here, proc, monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    here.offer("kvp", "hv_utils")
    ((level, text),) = _topic(here, "kvp", proc=str(proc))
    assert (level, "no hv_kvp_daemon runs" in text) == (Level.TODO, True)
    process(proc, 7, "hypervkvpd", unit="hypervkvpd.service")
    ((level, text),) = _topic(here, "kvp", proc=str(proc))
    assert (level, "hypervkvpd (process 7, hypervkvpd.service) runs; only root" in text) == (Level.NOTE, True)


@pytest.mark.parametrize(
    ("release", "says"),
    [("6.8.0", "load hv_utils."), ("6.12.107", "`hvring run fcopy` or hv_fcopy_uio_daemon.")],
)
def test_file_copy_without_a_driver(here, proc, release: str, says: str) -> None:
    here.offer("fcopy")
    ((level, text),) = _topic(here, "fcopy", release, str(proc))
    assert level is Level.TODO
    assert says in text


def test_file_copy_by_the_in_tree_daemon_over_uio(here, proc) -> None:
    here.offer("fcopy", UIO_DRIVER)
    here.set(BY_NAME["fcopy"].instance_guid, "state", "3")
    process(proc, 7, "hv_fcopy_uio_daemon", "/dev/uio0", unit="hv_fcopy_uio_daemon.service")
    ((level, text),) = _topic(here, "fcopy", proc=str(proc))
    assert level is Level.GOOD
    assert "served by hv_fcopy_uio_da (process 7, hv_fcopy_uio_daemon.service)" in text


def test_daemons_that_run_beside_hvring_and_bindings_that_are_half_done(here, proc) -> None:
    here.offer("kvp", UIO_DRIVER)
    here.set(KVP, "state", "3")
    process(proc, 5, "python3", f"{here.dev}/uio0", unit="hvring.service")
    process(proc, 7, "hv_kvp_daemon", unit="hv-kvp-daemon.service")
    served, beside = _topic(here, "kvp", proc=str(proc))
    assert served == (
        Level.GOOD,
        f"It is bound ({here.dev}/uio0) and served by python3 (process 5, hvring.service).",
    )
    assert beside[0] is Level.NOTE
    assert "`systemctl mask --now hv-kvp-daemon.service`" in beside[1]
    here.offer("vss")
    here.set(BY_NAME["vss"].instance_guid, "driver_override", UIO_DRIVER)
    ((level, text),) = _topic(here, "vss", proc=str(proc))
    assert (level, "`hvring unbind vss`" in text) == (Level.TODO, True)


def test_names_of_programs_are_escaped(here, proc) -> None:
    here.offer("kvp", "hv_utils")
    process(proc, 7, "a\x1b[2Jb", "/dev/vmbus/hv_kvp")
    assert "a\\x1b[2Jb (process 7)" in _topic(here, "kvp", proc=str(proc))[0][1]


def test_in_a_confidential_vm_nothing_is_bound_and_doctor_says_why(here, call, capsys, proc) -> None:
    here.offer("heartbeat", "hv_utils")
    here.offer("shutdown", UIO_DRIVER)
    (Path(here.dev) / "tdx_guest").touch()
    assert call("bind", "heartbeat", "--force") == 1
    assert "confidential (Intel TDX)" in capsys.readouterr().err
    assert here.written == []
    ((level, text),) = _topic(here, "isolation", proc=str(proc))
    assert (level, "Intel TDX" in text) == (Level.NOTE, True)
    assert (Level.TODO, "hvring unbind shutdown") in [
        (level, text[text.find("hvring") : -1][:22])
        for level, text in _topic(here, "shutdown", proc=str(proc))
    ]
    assert "withheld" in _topic(here, "kvp", proc=str(proc))[0][1]
    assert call("unbind", "shutdown") == 0


# ------------------------------------------------------------------------------------------ hvring run


def test_run_off_hyper_v_has_nothing_to_do_and_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("hvring.cli.run.BUS", str(tmp_path / "none"))
    assert main(["run"]) == 0
    assert "no Hyper-V guest" in capsys.readouterr().err
