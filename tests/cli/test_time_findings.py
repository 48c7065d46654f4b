# SPDX-License-Identifier: Apache-2.0
"""What `hvring doctor` says of the time: clocks, programs that set ours, chrony's sources, the reference counter."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from hvring.cli import doctor, main
from hvring.cli.findings import Level
from hvring.cli.time_agents import AgentTime
from hvring.cli.time_findings import examine_time
from hvring.transport import modules
from hvring.transport.kernels import Kernel
from hvring.transport.sysfs import UIO_DRIVER

KERNEL = Kernel("6.12.107", (6, 12, 107))
Told = list[tuple[Level, str]]


class Machine:
    """A machine of files below ``root``, with timesync offered to ``driver``."""

    def __init__(self, bus, root: Path, driver: str) -> None:
        self.bus = bus
        self.root = root
        self.bus.offer("timesync", driver)
        (root / "proc").mkdir()

    def clock(self, name: str, title: str) -> None:
        directory = self.root / "sys/class/ptp" / name
        directory.mkdir(parents=True)
        (directory / "clock_name").write_text(f"{title}\n")
        (self.root / "dev" / name).touch()

    def link(self, name: str) -> None:
        (self.root / "dev/ptp_hyperv").symlink_to(name)

    def runs(self, pid: int, *arguments: str, unit: str = "", opens: str | None = None) -> None:
        directory = self.root / "proc" / str(pid)
        (directory / "fd").mkdir(parents=True)
        (directory / "comm").write_text(f"{Path(arguments[0]).name[:15]}\n")
        (directory / "cmdline").write_text("".join(f"{word}\0" for word in arguments))
        (directory / "cgroup").write_text(f"0::/system.slice/{unit}\n")
        if opens is not None:
            (directory / "fd/3").symlink_to(opens)

    def file(self, path: str, text: str) -> None:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def has_counter(self) -> None:
        self.file(
            "sys/devices/system/clocksource/clocksource0/available_clocksource",
            "hyperv_clocksource_tsc_page\n",
        )

    def told(self, machine: str = "x86_64", ours: Sequence[AgentTime] = ()) -> Told:
        found = examine_time(self.bus, KERNEL, str(self.root / "proc"), str(self.root), machine, ours)
        return [(one.level, one.text) for one in found]


@pytest.fixture
def here(bus, tmp_path: Path) -> Machine:
    """The kernel has timesync and its clock is ptp0."""
    machine = Machine(bus, tmp_path, "hv_utils")
    machine.clock("ptp0", "hyperv")
    return machine


@pytest.fixture
def ours(bus, tmp_path: Path) -> Machine:
    """hvring has timesync."""
    machine = Machine(bus, tmp_path, UIO_DRIVER)
    machine.runs(
        5, "python3", "-m", "hvring", "run", "timesync", unit="hvring.service", opens=f"{bus.dev}/uio0"
    )
    return machine


@pytest.fixture
def chrony(here: Machine) -> Callable[..., Told]:
    """What is said when chrony runs with these lines, in its only file."""

    def told(*lines: str) -> Told:
        here.runs(7, "/usr/sbin/chronyd", "-F", "1", unit="chrony.service")
        here.file("/etc/chrony/chrony.conf", "\n".join(lines))
        return here.told()

    return told


# ------------------------------------------------------------------------------------------ clocks


def test_one_clock_and_chrony_that_reads_it_leave_nothing_to_do(here, chrony) -> None:
    here.link("ptp0")
    ((level, text),) = chrony("refclock PHC /dev/ptp_hyperv poll 3")
    assert level is Level.GOOD
    assert text == "chronyd (process 7, chrony.service) reads the host's clock, /dev/ptp_hyperv."


def test_two_clocks_of_hyper_v(here) -> None:
    here.clock("ptp1", "hyperv")
    (first, *_) = here.told()
    assert first[0] is Level.TODO
    assert f"2 PTP clocks of Hyper-V ({here.bus.dev}/ptp0, {here.bus.dev}/ptp1)" in first[1]


@pytest.mark.parametrize("title", ["KVM virtual PTP", "vmclock", "ptp_vmw"])
def test_a_clock_of_another_hypervisor(here, title: str) -> None:
    here.clock("ptp1", title)
    (first, *_) = here.told()
    assert first[0] is Level.NOTE
    assert f"{here.bus.dev}/ptp1 ({title})" in first[1]


def test_a_network_cards_clock_is_no_duplicate(here) -> None:
    here.clock("ptp1", "mlx5_ptp")
    assert not [text for _, text in here.told() if "mlx5" in text]


# ------------------------------------------------------------------------------------------ who sets the clock


def test_two_programs_that_set_the_clock_are_named_with_their_units(here, chrony) -> None:
    here.runs(8, "chronyd", unit="chrony.service")  # its helper is no second one
    here.runs(9, "/usr/lib/systemd/systemd-timesyncd", unit="systemd-timesyncd.service")
    (text,) = [text for level, text in chrony("refclock PHC /dev/ptp0") if level is Level.TODO]
    assert text == (
        "chronyd (process 7, chrony.service) and systemd-timesyn (process 9, systemd-timesyncd.service) all set the "
        "clock, and against each other: keep one (chronyd: `systemctl disable --now systemd-timesyncd.service`)."
    )


def test_hvring_that_sets_the_clock_is_one_of_them(ours) -> None:
    node = f"{ours.bus.dev}/uio0"
    ours.runs(6, "hvring", "run", "timesync", "--set-clock", unit="hvring.service", opens=node)
    ours.runs(7, "ntpd", unit="ntpsec.service")
    (text,) = [text for level, text in ours.told() if level is Level.TODO]
    assert "ntpd (process 7, ntpsec.service) and hvring (process 6, hvring.service) all set the clock" in text
    assert text.endswith("keep one (ntpd: `hvring run` without --set-clock or `timesync.mode`).")


@pytest.mark.parametrize(("mode", "told"), [("step", 1), ("feed", 0), ("observe", 0)])
def test_hvring_whose_configuration_lets_it_is_one_of_them_by_its_own_word(
    ours, mode: str, told: int
) -> None:
    ours.runs(7, "ntpd", unit="ntpsec.service")
    agents = [AgentTime("/run/hvring/a.sock", 5, {"mode": mode}), AgentTime("/x", 99, {"mode": "step"})]
    found = [text for _, text in ours.told(ours=agents) if "all set the clock" in text]
    assert len(found) == told


def test_hvring_that_only_measures_sets_nothing(ours) -> None:
    ours.runs(7, "ntpd", unit="ntpsec.service")
    assert not [text for _, text in ours.told() if "set the clock" in text]


def test_a_program_by_that_word_without_the_device_is_not_ours(ours) -> None:
    ours.runs(6, "grep", "--set-clock")
    ours.runs(7, "ntpd", unit="ntpsec.service")
    assert not [text for _, text in ours.told() if "set the clock" in text]


def test_nobody_keeps_the_clock(here) -> None:
    ((level, text),) = here.told()
    assert (level, "No program keeps the clock right" in text) == (Level.NOTE, True)


def test_timesyncd_cannot_take_the_hosts_time(here) -> None:
    here.runs(9, "systemd-timesyncd", unit="systemd-timesyncd.service")
    ((level, text),) = here.told()
    assert (level, "servers of the network only" in text) == (Level.NOTE, True)


# ------------------------------------------------------------------------------------------ chrony's sources


@pytest.mark.parametrize("linked", [True, False])
def test_the_line_that_chrony_lacks_is_told(here, chrony, linked: bool) -> None:
    if linked:
        here.link("ptp0")
    ((level, text),) = chrony("pool ntp.example.org iburst", "# refclock PHC /dev/ptp0")
    name = "ptp_hyperv" if linked else "ptp0"
    assert level is Level.NOTE
    assert f"`refclock PHC /dev/{name} poll 3 dpoll -2 offset 0 stratum 2` in /etc/chrony/chrony.conf" in text


@pytest.mark.parametrize(
    "line",
    [
        "refclock PHC /dev/ptp0",
        "  REFCLOCK phc /dev/ptp0:nocrossts poll 3",
        "include /etc/chrony/*.inc",
        "confdir /etc/nowhere /etc/chrony/conf.d",
    ],
)
def test_a_source_is_found_wherever_it_is(here, chrony, line: str) -> None:
    here.file("/etc/chrony/a.inc", "confdir /etc/chrony/more.d\n")
    here.file("/etc/chrony/more.d/x.conf", "refclock PHC /dev/ptp0\n")
    here.file("/etc/chrony/conf.d/y.conf", "refclock PHC /dev/ptp0\n")
    assert [level for level, _ in chrony(line)] == [Level.GOOD]


@pytest.mark.parametrize(
    "line",
    [
        "! refclock PHC /dev/ptp0",
        "% refclock PHC /dev/ptp0",
        "refclock SHM 0",
        "refclock",
        "refclock PHC",
        "include",
        "include /etc/chrony/conf.d",
        "confdir",
        "confdir /etc/first /etc/chrony/conf.d",
        "sourcedir /etc/chrony/conf.d",
        "include /etc/chrony/pipe",
        "include /dev/zero",
    ],
)
def test_what_is_no_source_is_none(here, chrony, line: str) -> None:
    here.file("/etc/chrony/conf.d/y.conf", "refclock PHC /dev/ptp0\n")
    here.file("/etc/first/y.conf", "# in its place\n")
    os.mkfifo(here.root / "etc/chrony/pipe")
    assert ["does not read the host's clock" in text for _, text in chrony(line)] == [True]


def test_files_that_include_themselves_end(here, chrony) -> None:
    ((_, text),) = chrony(*["include /etc/chrony/*"] * 50)
    assert "does not read the host's clock" in text


def test_the_file_that_chronyd_was_started_with_counts(here) -> None:
    here.runs(7, "chronyd", "-d", "-f", "/etc/own.conf")
    here.file("/etc/chrony/chrony.conf", "")
    here.file("/etc/own.conf", "refclock PHC /dev/ptp0\n")
    assert [level for level, _ in here.told()] == [Level.GOOD]


def test_without_a_file_the_usual_one_is_named(here) -> None:
    here.runs(7, "chronyd")
    ((_, text),) = here.told()
    assert "in /etc/chrony/chrony.conf adds it" in text
    here.file("/etc/chrony.conf", "")
    ((_, text),) = here.told()
    assert "in /etc/chrony.conf adds it" in text


def test_a_file_that_cannot_be_read_is_told(here) -> None:
    here.runs(7, "chronyd", "-f", "/etc")
    ((level, text),) = here.told()
    assert (level, "/etc, cannot be read" in text) == (Level.NOTE, True)


def test_a_source_by_number_is_noted_where_there_are_several_clocks(here, chrony) -> None:
    here.clock("ptp1", "mlx5_ptp")
    good, (level, text) = chrony("refclock PHC /dev/ptp0")
    assert good[0] is Level.GOOD
    assert level is Level.NOTE
    assert 'ATTR{clock_name}=="hyperv", SYMLINK+="ptp_hyperv"' in text


def test_the_wrong_clock_is_to_be_mended(here, chrony) -> None:
    here.clock("ptp1", "KVM virtual PTP")
    found = chrony("refclock PHC /dev/ptp1")
    ((text),) = [text for level, text in found if level is Level.TODO]
    assert "reads /dev/ptp1 (/etc/chrony/chrony.conf), which is KVM virtual PTP" in text
    assert [text for _, text in found if "does not read the host's clock" in text]


def test_a_source_that_went_with_the_driver(ours) -> None:
    ours.runs(7, "chronyd", unit="chrony.service")
    ours.file("/etc/chrony.conf", "refclock PHC /dev/ptp_hyperv\n")
    (text,) = [text for level, text in ours.told() if level is Level.TODO]
    assert f"which is not there while timesync is bound to {UIO_DRIVER}: `hvring unbind timesync`" in text


# ------------------------------------------------------------------------------------------ the reference counter


def counter(told: Told) -> tuple[Level, str]:
    (found,) = [one for one in told if "waited" in one[1]]
    return found


def test_the_counter_is_there(ours) -> None:
    ours.has_counter()
    ours.file("dev/cpu/0/msr", "")
    assert counter(ours.told())[0] is Level.GOOD


@pytest.mark.parametrize(
    ("machine", "has", "module", "says"),
    [
        ("x86_64", True, True, "msr is not loaded, so how long a message waited is not known"),
        ("x86_64", True, None, "`modprobe msr`"),
        ("x86_64", True, False, "6.12.107 has no module msr"),
        ("x86_64", False, True, "no reference counter of Hyper-V"),
        ("aarch64", False, True, "On aarch64 only the kernel can read"),
    ],
)
def test_the_counter_is_missing_and_what_that_costs_is_said(
    ours, monkeypatch, machine: str, has: bool, module: bool | None, says: str
) -> None:
    monkeypatch.setattr(modules, "available", lambda name, release: module if name == "msr" else None)
    if has:
        ours.has_counter()
    level, text = counter(ours.told(machine))
    assert level is Level.NOTE
    assert says in text
    assert "may be further behind by as much" in text


def test_the_counter_does_not_matter_where_the_kernel_has_timesync(here) -> None:
    assert not [text for _, text in here.told() if "waited" in text]


# ------------------------------------------------------------------------------------------ the command


def test_doctor_says_it(here, tmp_path: Path, capsys, monkeypatch) -> None:
    look = partial(examine_time, proc=str(tmp_path / "proc"), root=str(tmp_path))
    monkeypatch.setattr(doctor, "examine_time", look)
    where = [
        f"--{name}={tmp_path / path}" for name, path in (("sysfs", "sys"), ("dev", "dev"), ("state", "run"))
    ]
    main(["doctor", "--json", *where])
    rows = json.loads(capsys.readouterr().out)
    assert [row["text"][:30] for row in rows if row["topic"] == "time"] == ["No program keeps the clock rig"]
