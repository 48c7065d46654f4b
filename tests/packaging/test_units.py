# SPDX-License-Identifier: Apache-2.0
"""The shipped units: what they may do is what needs.toml says, no more and no less, and systemd finds them tight."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from hvring.guest import launch
from hvring.guest.hooks import launch as hooks
from hvring.vmbus import BY_NAME

PACKAGING = Path(__file__).parents[2] / "packaging"
NEEDS = tomllib.loads((PACKAGING / "systemd" / "needs.toml").read_text(encoding="utf-8"))
UNITS = [name for name in NEEDS if name not in ("all", "most") and "unconfined" not in NEEDS[name]]
#: What systemd's own scale calls well protected, in tenths.
TIGHT = 25
FILTERED = {
    *("@privileged", "@resources", "@mount", "@debug", "@cpu-emulation", "@obsolete", "@raw-io", "@reboot"),
    *("@swap", "@module", "@clock"),
}


def path_of(name: str) -> Path:
    return PACKAGING / "systemd" / f"hvring-{name}.service"


def settings(path: Path) -> dict[str, list[str]]:
    found = defaultdict(list)
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[name].append(value)
    return found


def words(unit: dict[str, list[str]], name: str) -> set[str]:
    return set(" ".join(unit[name]).split())


def test_each_service_has_a_unit_and_each_unit_its_needs() -> None:
    assert set(UNITS) == {*BY_NAME, "guardian@"}
    assert {path.name for path in (PACKAGING / "systemd").glob("*.service")} == {
        path_of(n).name for n in (*UNITS, "hooks@")
    }


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_may_do_what_it_needs_and_no_more(name: str) -> None:
    unit, needs = settings(path_of(name)), NEEDS[name]
    assert unit["User"] == [needs["user"]]
    assert unit["Group"] == ["hvring"]
    capabilities = set(needs.get("capabilities", ()))
    assert words(unit, "CapabilityBoundingSet") == words(unit, "AmbientCapabilities") == capabilities
    assert {value.split()[0] for value in unit["DeviceAllow"]} == set(needs.get("devices", ()))
    assert words(unit, "RestrictAddressFamilies") == set(needs["families"])
    assert words(unit, "StateDirectory") == set(needs.get("directories", ()))
    assert not unit["ReadWritePaths"]
    allowed, refused = unit["SystemCallFilter"]
    assert allowed == "@system-service"
    assert set(refused.removeprefix("~").split()) == FILTERED
    for setting, value in NEEDS["all"].items():
        assert unit[setting] == [value], setting
    for setting, value in NEEDS["most"].items():
        assert (unit[setting] == [value]) is (setting not in needs.get("weaker", {})), setting


@pytest.mark.parametrize("name", UNITS)
def test_systemd_calls_a_unit_well_protected(name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={TIGHT}", str(path_of(name))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [name for name in UNITS if name in BY_NAME])
def test_a_service_is_started_asked_and_given_back_under_its_own_name(name: str) -> None:
    unit = settings(path_of(name))
    socket = f"/run/hvring/{name}/{name}.sock"
    assert unit["RuntimeDirectory"] == [f"hvring/{name}"]
    assert unit["ExecStart"][0].startswith("/usr/bin/hvring run ")
    assert unit["ExecStart"][0].endswith(f"--control {socket}")
    assert name in unit["ExecStart"][0].split()
    assert unit["ExecReload"] == [f"/usr/bin/hvring reload --control {socket}"]
    assert unit["ConditionVirtualization"] == ["microsoft"]
    assert unit["ConditionPathExists"] == ["/sys/bus/vmbus/devices"]
    assert (unit["Type"], unit["Restart"]) == (["notify"], ["always"])
    assert "BindsTo" not in unit
    assert "Conflicts" not in unit
    bound = f"+/usr/bin/hvring bind {name}" in unit["ExecStartPre"]
    assert bound is (f"+/usr/bin/hvring unbind {name}" in unit["ExecStopPost"])
    # It stops the daemons of every distribution that serve the same device, and no others.
    stopped = {word for value in unit["ExecStartPre"] for word in value.split() if word.endswith(".service")}
    assert stopped == set(BY_NAME[name].units)


def test_a_guardian_is_had_where_the_agent_asks_for_it() -> None:
    socket = settings(PACKAGING / "systemd" / "hvring-guardian.socket")
    assert socket["ListenSequentialPacket"] == [launch.SOCKET]
    assert (socket["Accept"], socket["SocketUser"], socket["SocketMode"]) == (["yes"], ["hvring"], ["0600"])


def test_hooks_are_run_by_root_without_a_sandbox_where_the_agent_asks_for_it() -> None:
    socket = settings(PACKAGING / "systemd" / "hvring-hooks.socket")
    assert socket["ListenSequentialPacket"] == [hooks.SOCKET]
    assert (socket["Accept"], socket["SocketUser"], socket["SocketMode"]) == (["yes"], ["hvring"], ["0600"])
    unit = settings(path_of("hooks@"))
    assert NEEDS["hooks@"]["unconfined"]
    assert unit["User"] == [NEEDS["hooks@"]["user"]] == ["root"]
    # A hook that holds outlives the process that started it.
    assert unit["KillMode"] == ["process"]
    # Anything of these would be a hook's, too.
    assert not {*NEEDS["all"], *NEEDS["most"], "SystemCallFilter", "CapabilityBoundingSet"} & set(unit)
    (program,) = unit["ExecStart"]
    assert program.endswith("/hvring/guest/hooks/__main__.py")
    assert Path(hooks.__file__).with_name("__main__.py").is_file()
    assert {"hvring-hooks.socket", "hvring-guardian.socket"} <= words(settings(path_of("vss")), "Wants")


def test_udev_gives_the_group_the_devices_of_the_six_services() -> None:
    rules = (PACKAGING / "udev" / "60-hvring.rules").read_text(encoding="utf-8")
    assert set(re.findall(r'ATTRS\{class_id\}=="\{([^}]*)\}"', rules)) == {
        f.class_guid for f in BY_NAME.values()
    }
    for line in rules.splitlines():
        if "SUBSYSTEM==" in line:
            assert line.endswith('GROUP="hvring", MODE="0660", TAG+="systemd"')


def test_udev_understands_its_rules(tmp_path: Path) -> None:
    if shutil.which("udevadm") is None:
        pytest.skip("needs udevadm")
    known = subprocess.run(["udevadm", "verify", "--help"], capture_output=True, check=False)
    if known.returncode:
        pytest.skip("this udevadm verifies nothing (systemd before 254)")
    rules = PACKAGING / "udev" / "60-hvring.rules"
    done = subprocess.run(
        ["udevadm", "verify", "--resolve-names=never", os.fspath(rules)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
