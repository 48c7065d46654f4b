# SPDX-License-Identifier: Apache-2.0
"""Each shipped unit does its whole work as it is shipped: as its user, in its sandbox, under its syscall filter."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from shipped import PACKAGING, SERVICES, Host, disk, files, text

pytestmark = pytest.mark.root
SUITES = ["bookworm", "trixie"]
SOCKETS = ("hvring-guardian.socket", "hvring-hooks.socket")


@pytest.fixture
def undo() -> Iterator[contextlib.ExitStack]:
    """What is undone at the end, before the machine ends."""
    with contextlib.ExitStack() as stack:
        yield stack


def booted(boot: Callable[..., Any], suite: str, **more: str) -> tuple[Any, Host]:
    machine = boot(suite, files=files(**more))
    machine.run("systemd-sysusers")
    return machine, Host(machine)


@pytest.mark.parametrize("suite", SUITES)
def test_units_work_in_their_sandboxes(suite: str, boot: Callable[..., Any]) -> None:
    machine, host = booted(boot, suite)
    # as a distribution's daemon, which is root, left them
    machine.run(
        "sh", "-c", "mkdir /var/lib/hyperv && touch /var/lib/hyperv/.kvp_pool_0 /var/lib/hyperv/.kvp_pool_3"
    )
    # as a copy whose processes were killed left it
    left = "/var/lib/hvring/incoming/below/.hvring-1.part"
    machine.run(
        "sh", "-c", f"mkdir -p {left.rpartition('/')[0]} && touch {left} && chown -R hvring: /var/lib/hvring"
    )
    for name in ("kvp", "heartbeat", "timesync", "fcopy", "shutdown"):
        host.start(name)
        facts = machine.show(f"hvring-{name}.service", "ActiveState", "StatusText", "User", "NRestarts")
        assert facts["ActiveState"] == "active"
        machine.wait_for(f"hvring-{name}.service", StatusText=f"serving {name}")
    # data exchange: what the host sets is in the pools, what the guest is goes to the host
    host.ask("kvp", "set", "colour", "green")
    assert "colour" in machine.run("hvring", "kvp", "list").stdout
    assert "hvring-test" in host.ask("kvp", "list", "--pool", "auto").stdout
    # a file
    machine.write("/run/report", "of the host")
    host.ask("copy", "/run/report", "/var/lib/hvring/incoming/")
    assert machine.run("cat", "/var/lib/hvring/incoming/report").stdout == "of the host"
    assert machine.run("stat", "-c", "%U:%G", "/var/lib/hvring/incoming/report").stdout == "hvring:hvring\n"
    machine.write("/run/report", "of the host, again")
    host.ask("copy", "--overwrite", "/run/report", "/var/lib/hvring/incoming/")
    assert machine.run("cat", "/var/lib/hvring/incoming/report").stdout == "of the host, again"
    machine.run("sh", "-c", f"until ! [ -e {left} ]; do sleep 0.05; done")
    assert machine.run("ls", "-A", "/var/lib/hvring/incoming").stdout.split() == ["below", "report"]
    host.ask("heartbeat")
    host.ask("time", "sample")
    said = machine.run("hvring", "status", "--json").stdout  # of all of them
    for name in ("kvp", "heartbeat", "timesync", "fcopy", "shutdown"):
        unit = f"hvring-{name}.service"
        assert machine.show(unit, "NRestarts") == {"NRestarts": "0"}
        assert f"/run/hvring/{name}/{name}.sock" in said, said
    # root without a capability is obeyed all the same
    host.ask("shutdown")
    assert machine.wait_end() == "poweroff"


@pytest.mark.parametrize("suite", SUITES)
def test_a_freeze_and_its_guardian_have_units_of_their_own(
    suite: str, boot: Callable[..., Any], undo: contextlib.ExitStack
) -> None:
    for tool in ("losetup", "mkfs.ext4"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    machine, host = booted(boot, suite, vss="--loop /mnt/disk --only /mnt/disk")
    disk(machine, "/mnt/disk", undo.callback)
    machine.systemctl("start", "hvring-guardian.socket")
    host.start("vss")
    host.ask("backup")
    assert any("hvring-guardian@" in line for line in machine.journal("init.scope")), machine.journal()
    ends: tuple[tuple[str, ...], ...] = (
        ("kill", "--signal=KILL", "hvring-vss.service"),
        # The freezing child is left, and nobody may kill it.
        ("kill", "--signal=KILL", "--kill-whom=main", "hvring-vss.service", "hvring-guardian@*.service"),
        ("stop", "hvring-vss.service"),
    )
    for end in ends:
        host.ask("wait", "vss")
        holding = subprocess.Popen(
            machine.inside("hvring", "host", "--socket", "/run/host/socket", "backup", "--hold", "50"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            machine.wait_for("hvring-vss.service", StatusText="file systems are frozen for a backup")
            writer = blocked_writer(machine, "/mnt/disk/file")
            (guardian,) = machine.systemctl(
                "list-units", "--plain", "--no-legend", "--state=active", "hvring-guardian@*.service"
            ).splitlines()
            group = machine.show(guardian.split()[0], "ControlGroup")["ControlGroup"]
            assert "hvring-vss" not in group
            machine.systemctl(*end)
            assert writer.wait(60) == 0
        finally:
            holding.kill()
            holding.wait()
        machine.systemctl("stop", "host.service")  # which holds on to its backup
        host = Host(machine)
        machine.systemctl("start", "hvring-vss.service")
        machine.wait_for("hvring-vss.service", SubState="running", StatusText="serving vss")


HOOK = """#!/bin/sh
say() { echo "$HVRING_HOOK $1" >>/run/told; }
say "$1"
[ "$1" = freeze ] || exit 0
# what no unit of hvring's own may: become somebody else
[ "$(id -u):$(runuser -u nobody -- id -un)" = 0:nobody ] || exit 1
echo held
read -r word
say "${word:-eof}"
"""


@pytest.mark.parametrize("suite", SUITES)
def test_hooks_are_run_by_root_apart_from_the_agent(
    suite: str, boot: Callable[..., Any], undo: contextlib.ExitStack
) -> None:
    for tool in ("losetup", "mkfs.ext4"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    machine, host = booted(boot, suite, vss="--loop /mnt/disk --only /mnt/disk")
    disk(machine, "/mnt/disk", undo.callback)
    for name in ("10-one", "20-two"):
        machine.run("mkdir", "-p", "/etc/hvring/hooks.d")
        machine.write(f"/etc/hvring/hooks.d/{name}", HOOK)
        machine.run("chmod", "755", f"/etc/hvring/hooks.d/{name}")
    machine.systemctl("start", *SOCKETS)
    host.start("vss")
    host.ask("backup")
    assert machine.run("cat", "/run/told").stdout.splitlines() == [
        *("10-one prepare", "20-two prepare", "10-one freeze", "20-two freeze", "20-two thaw", "10-one thaw")
    ]
    assert any("hvring-hooks@" in line for line in machine.journal("init.scope")), machine.journal()
    # The agent and all of its control group are killed while all is frozen.
    machine.run("rm", "/run/told")
    holding = subprocess.Popen(
        machine.inside("hvring", "host", "--socket", "/run/host/socket", "backup", "--hold", "50"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        machine.run("sh", "-c", 'until [ "$(grep -c freeze /run/told)" = 2 ]; do sleep 0.05; done')
        machine.systemctl("kill", "--signal=KILL", "hvring-vss.service")
        machine.run("sh", "-c", 'until [ "$(grep -c abort /run/told)" = 2 ]; do sleep 0.05; done')
    finally:
        holding.kill()
        holding.wait()
    assert machine.run("cat", "/run/told").stdout.splitlines()[-2:] == ["20-two abort", "10-one abort"]
    machine.systemctl("stop", "host.service")  # which holds on to its backup
    host = Host(machine)
    machine.wait_for("hvring-vss.service", SubState="running", StatusText="serving vss")
    # Root runs nothing of which only the agent says that it is a hook.
    machine.write("/run/other/10-one", HOOK)
    machine.run("chmod", "-R", "755", "/run/other")
    machine.write("/run/other.toml", '[vss]\nhooks = "/run/other"\n')
    drop_in = "/etc/systemd/system/hvring-vss.service.d/test.conf"
    said = machine.run("cat", drop_in).stdout.replace(
        "hvring run vss", "hvring run vss --config /run/other.toml"
    )
    machine.write(drop_in, said)
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", "hvring-vss.service")
    host.ask("wait", "vss")
    machine.run("rm", "/run/told")
    assert host.ask("backup", check=False).returncode != 0
    assert any("reason=hook_refused" in line for line in machine.journal("hvring-vss.service"))
    assert machine.run("cat", "/run/told", check=False).returncode != 0


def blocked_writer(machine: Any, path: str) -> subprocess.Popen[bytes]:
    """One that waits for a thaw, once all is frozen."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        writer = subprocess.Popen(
            machine.inside("dd", "if=/dev/zero", f"of={path}", "count=1", "status=none"),
            stdin=subprocess.DEVNULL,
        )
        while writer.poll() is None:
            with contextlib.suppress(OSError):
                if any(waits_for_a_thaw(pid) for pid in (str(writer.pid), *children_of(writer.pid))):
                    return writer
            time.sleep(0.02)
    raise AssertionError("nothing was frozen")


def children_of(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return file.read().split()


def waits_for_a_thaw(pid: str) -> bool:
    with open(f"/proc/{pid}/wchan", encoding="ascii") as file:
        return file.read() == "percpu_rwsem_wait"


@pytest.mark.parametrize("suite", SUITES)
def test_the_manager_kills_a_loop_that_stalls_and_restarts_it_beside_a_daemon(
    suite: str, boot: Callable[..., Any]
) -> None:
    machine, host = booted(boot, suite)
    unit = "hvring-kvp.service"
    daemon = "hv-kvp-daemon.service"
    machine.write("/etc/systemd/system/" + daemon, "[Service]\nExecStart=/usr/bin/sleep infinity\n")
    # As shipped it stops that daemon before it starts, and udev starts the daemon when the device is back.
    (stop,) = re.findall(r"^ExecStartPre=(.*systemctl stop.*)$", text(unit), re.MULTILINE)
    machine.write(
        f"/etc/systemd/system/{unit}.d/zz.conf",
        f"[Service]\nWatchdogSec=5\nExecStartPre={stop}\nExecStopPost=+/usr/bin/systemctl --no-block start {daemon}\n",
    )
    machine.systemctl("daemon-reload")
    machine.systemctl("start", daemon)
    machine.write("/etc/hvring.toml", "")
    host.start("kvp")
    restarts = 0
    for end in ("STOP", "KILL", "HUP", "SEGV"):
        before = machine.show(unit, "MainPID")["MainPID"]
        if end == "HUP":  # reads the settings anew, and goes on
            machine.write("/etc/hvring.toml", "[kvp]\nmax_recrods = 9\n")
            assert machine.run("systemctl", "reload", unit, check=False).returncode != 0
            assert any("max_records" in line for line in machine.journal(unit))  # which was meant
            machine.write("/etc/hvring.toml", "[kvp]\nmax_records = 9\n")
            machine.systemctl("reload", unit)
            machine.wait_for(unit, StatusText="serving kvp", ActiveState="active", MainPID=before)
            continue
        machine.systemctl("kill", f"--signal={end}", "--kill-whom=main", unit)
        restarts += 1
        machine.wait_for(unit, NRestarts=str(restarts), ActiveState="active")
        machine.wait_for(unit, StatusText="serving kvp")
        host.ask("wait", "kvp")
        assert machine.show(unit, "MainPID")["MainPID"] != before
        assert machine.show(daemon, "ActiveState") == {"ActiveState": "inactive"}
        if end == "STOP":
            assert any("Watchdog timeout" in line for line in machine.journal())
    machine.systemctl("stop", unit)
    machine.wait_for(daemon, ActiveState="active")


def test_elsewhere_than_on_hyper_v_no_unit_starts_or_fails(boot: Callable[..., Any]) -> None:
    shipped = {name: words for name, words in files().items() if not name.endswith("/test.conf")}
    machine = boot("trixie", files=shipped)
    machine.run("systemd-sysusers")
    for unit in (*(f"hvring-{name}.service" for name in SERVICES), "hvring.target", *SOCKETS):
        machine.systemctl("enable", "--quiet", unit)
        machine.systemctl("start", unit)
        assert machine.show(unit, "ActiveState", "ConditionResult") == {
            "ActiveState": "inactive",
            "ConditionResult": "no",
        }
    assert machine.systemctl("--failed", "--plain", "--no-legend") == ""


@pytest.mark.parametrize("suite", SUITES)
def test_systemd_and_udev_understand_what_is_shipped(suite: str, boot: Callable[..., Any]) -> None:
    rules = PACKAGING / "udev" / "60-hvring.rules"
    machine = boot(suite, files={**files(), "/usr/lib/udev/rules.d/60-hvring.rules": rules.read_text()})
    machine.run("systemd-sysusers")
    units = [f"hvring-{name}.service" for name in SERVICES]
    done = machine.run("systemd-analyze", "verify", "--man=no", *units, "hvring.target", *SOCKETS)
    assert done.stderr == ""
    for unit in (*units, "hvring-guardian@.service"):
        machine.run(
            "systemd-analyze", "security", "--offline=yes", "--threshold=25", f"/etc/systemd/system/{unit}"
        )
    if suite != "bookworm":  # systemd 252 cannot
        machine.run("udevadm", "verify", "/usr/lib/udev/rules.d/60-hvring.rules")


def test_a_backup_needs_each_of_its_capabilities(
    boot: Callable[..., Any], undo: contextlib.ExitStack
) -> None:
    needs = tomllib.loads((PACKAGING / "systemd" / "needs.toml").read_text(encoding="utf-8"))
    capabilities = set(needs["vss"]["capabilities"])
    assert capabilities == set(needs["guardian@"]["capabilities"])
    places = {
        "/mnt/a": "of everybody",
        "/mnt/private/b": "below a directory of root's",
        "/mnt/c": "elsewhere",
    }
    machine, host = booted(boot, "trixie", vss=" ".join(f"--loop {place} --only {place}" for place in places))
    for place in places:
        node = disk(machine, place, undo.callback)
    machine.run("chmod", "700", "/mnt/private")
    machine.run("umount", "--lazy", "/mnt/c")  # and only another mount namespace has it
    machine.run(
        *("systemd-run", "--quiet", "--unit=other", "--property=PrivateMounts=yes"),
        *("sh", "-c", f"mount {node} /mnt/c && touch /run/is-mounted && exec sleep infinity"),
    )
    machine.run("sh", "-c", "until [ -e /run/is-mounted ]; do sleep 0.05; done")
    machine.systemctl("start", "hvring-guardian.socket")

    def frozen(without: str) -> set[str]:
        """What a backup froze."""
        left = " ".join(sorted(capabilities - {without}))
        for unit in ("hvring-vss.service", "hvring-guardian@.service"):
            drop_in = "[Service]\nCapabilityBoundingSet=\nAmbientCapabilities=\n"
            drop_in += f"CapabilityBoundingSet={left}\nAmbientCapabilities={left}\n"
            machine.write(f"/etc/systemd/system/{unit}.d/without.conf", drop_in)
        machine.systemctl("daemon-reload")
        machine.systemctl("restart", "hvring-vss.service")
        host.ask("wait", "vss")
        before = len(machine.journal("hvring-vss.service"))
        host.ask("backup", check=False)
        said = [line for line in machine.journal("hvring-vss.service")[before:] if "event=frozen" in line]
        return {place for place in places if any(place in line.split(";")[0] for line in said)}

    assert frozen("nothing") == set(places)
    assert frozen("CAP_SYS_ADMIN") == set()
    # and the host reads why
    machine.run(
        "sh", "-c", "until hvring kvp list --pool guest | grep -q hvring.vss.last_error; do sleep 0.1; done"
    )
    assert frozen("CAP_DAC_READ_SEARCH") == {"/mnt/a", "/mnt/c"}
    assert frozen("CAP_SYS_PTRACE") == {"/mnt/a", "/mnt/private/b"}
    machine.systemctl("stop", "hvring-vss.service")
