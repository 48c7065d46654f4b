# SPDX-License-Identifier: Apache-2.0
"""How applications of a machine with a real systemd are, in what the host hears from the shipped unit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.root

_UNIT = "hvring-heartbeat.service"
_APP = """
[Service]
ExecStart=python3 -m http.server --bind 127.0.0.1 --directory /srv 8080
"""
_SETTINGS = """
[health]
{knob}
interval = 0.2
bad = 1
good = 1
"""


@pytest.fixture
def served(boot: Callable[..., Any]) -> Callable[..., Any]:
    """served(knob, more) -> a Machine whose heartbeat looks at that, and who waits for what the host hears"""

    def start(knob: str, more: str = "") -> tuple[Any, Callable[[str], None]]:
        from shipped import SOCKET, Host, files

        machine = boot(
            "trixie",
            files={
                **files(),
                "/etc/systemd/system/app.service": _APP,
                f"/etc/systemd/system/{_UNIT}.d/more.conf": f"[Service]\n{more}\n",
                "/etc/hvring.toml": _SETTINGS.format(knob=knob),
            },
        )
        machine.run("systemd-sysusers")
        machine.systemctl("start", "app.service")
        Host(machine).start("heartbeat")

        def until(state: str) -> None:
            end = time.monotonic() + 60
            while True:
                said = machine.run(
                    "hvring", "host", "--socket", SOCKET, "heartbeat", "--json", check=False
                ).stdout
                if json.loads(said or "{}").get("application") == state:
                    return
                assert time.monotonic() < end, (said, machine.journal(_UNIT))
                time.sleep(0.2)

        return machine, until

    return start


@pytest.mark.parametrize("by", ["D-Bus", "systemctl"])
def test_the_host_hears_how_a_unit_is(by: str, served: Callable[..., Any]) -> None:
    hidden = "" if by == "D-Bus" else "InaccessiblePaths=/opt/hvring/site0/jeepney"
    machine, until = served('units = ["app.service"]', hidden)
    until("healthy")
    machine.systemctl("kill", "--signal=SIGKILL", "app.service")
    until("critical")
    machine.systemctl("reset-failed", "app.service")
    until("stopped")
    machine.systemctl("start", "app.service")
    until("healthy")
    told = [line for line in machine.journal(_UNIT) if "health is" in line]
    assert any("was healthy" in line and "unit app.service: failed" in line for line in told), told


def test_the_host_hears_how_a_server_and_a_file_are(served: Callable[..., Any]) -> None:
    knob = 'urls = ["http://127.0.0.1:8080/"]\nfresh = ["/run/alive=3600"]'
    machine, until = served(knob)
    until("critical")  # there is no such file
    machine.write("/run/alive", "")
    until("healthy")
    machine.run("touch", "--date=yesterday", "/run/alive")
    until("critical")
    machine.run("touch", "/run/alive")
    until("healthy")
    machine.systemctl("stop", "app.service")
    until("critical")
    status = json.loads(machine.run("hvring", "status", "--json", check=False).stdout)
    assert "Connect call failed" in json.dumps(status), status
    # and somebody who knows better
    machine.systemctl("start", "app.service")
    until("healthy")
    machine.run("hvring", "health", "set", "critical", "--text", "going away")
    until("critical")
