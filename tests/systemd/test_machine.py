# SPDX-License-Identifier: Apache-2.0
"""The machines themselves: a whole systemd, from which nothing gets out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.root


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_machine_boots_runs_commands_and_powers_off_alone(suite: str, boot: Callable[..., Any]) -> None:
    machine = boot(suite)
    assert machine.systemctl("is-system-running") == "running", machine.systemctl("--failed")
    assert machine.run("cat", "/proc/1/comm").stdout == "systemd\n"
    assert suite in machine.run("cat", "/etc/os-release").stdout
    assert machine.run("hvring", "--help").stdout.startswith("usage: hvring")
    # logind is there, and a service of another user
    machine.systemctl("start", "systemd-logind.service")
    assert "No sessions" in machine.run("loginctl").stdout
    machine.run(
        "systemd-run", "--wait", "--quiet", "--property=User=nobody", "sh", "-c", "echo $(id -un) was here"
    )
    assert "nobody was here" in machine.journal()
    # what is not its own cannot be changed
    for path in ("/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/power/state"):
        if os.path.exists(path):
            assert machine.run("sh", "-c", f": > {path}", check=False).returncode != 0
    machine.systemctl("poweroff", "--no-block")
    assert machine.wait_end() == "poweroff"


def test_a_machine_can_boot_anew(boot: Callable[..., Any]) -> None:
    machine = boot("trixie")
    machine.systemctl("reboot", "--no-block")
    assert machine.wait_end() == "reboot"
