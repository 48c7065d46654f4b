# SPDX-License-Identifier: Apache-2.0
"""The host's orders to go down, carried out by a real logind of a real systemd: the host hears the truth."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.root

_UNIT = "hvring-shutdown.service"
_DRAIN = """#!/bin/sh
echo "$HVRING_SHUTDOWN_ACTION $HVRING_SHUTDOWN_FORCE $HVRING_SHUTDOWN_TEXT" > /shared/drained
"""


@pytest.fixture
def machine(boot: Callable[..., Any]) -> Callable[..., Any]:
    """machine(suite, *ways) -> a Machine in which the shipped unit serves shutdown over a virtual host"""

    def start(suite: str, *ways: str) -> Any:
        from shipped import Host, files

        named = ", ".join(f'"{way}"' for way in ways)
        started = boot(
            suite,
            files={
                **files(),
                "/etc/hvring.toml": f'[shutdown]\nways = [{named}]\ndrain = ["/usr/local/bin/drain"]\n',
                "/usr/local/bin/drain": _DRAIN,
                # what drains is in the unit's sandbox
                f"/etc/systemd/system/{_UNIT}.d/drain.conf": "[Service]\nReadWritePaths=/shared\n",
            },
        )
        started.run("systemd-sysusers")
        Host(started).start("shutdown")
        return started

    return start


def words_for(*words: str) -> tuple[str, ...]:
    from shipped import SOCKET

    return ("hvring", "host", "--socket", SOCKET, "shutdown", *words)


def order(machine: Any, *words: str) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = machine.run(*words_for(*words), check=False)
    return done


@pytest.mark.parametrize(
    ("suite", "way", "words", "end"),
    [
        ("bookworm", "logind", (), "poweroff"),
        ("trixie", "logind", ("--restart",), "reboot"),
        ("trixie", "systemctl", (), "poweroff"),
        ("trixie", "init", ("--restart",), "reboot"),
    ],
)
def test_the_host_is_told_and_the_machine_goes_down(machine, suite, way, words, end) -> None:
    here = machine(suite, way)
    done = order(here, *words, "--text", "good night")
    assert done.returncode == 0, (done.stderr, here.journal(_UNIT))
    assert here.wait_end() == end
    assert (here.shared / "drained").read_text() == f"{'restart' if words else 'poweroff'} 0 good night\n"


def hold(machine: Any, unit: str, mode: str) -> None:
    """A program that holds a lock against the shutdown until its unit is stopped."""
    lock = (
        "systemd-inhibit",
        "--what=shutdown",
        f"--mode={mode}",
        "--who=Upgrades",
        "--why=Half of it is done",
    )
    machine.run(
        "systemd-run", "--quiet", f"--unit={unit}", *lock, "sh", "-c", "echo held; exec sleep infinity"
    )
    while "held" not in machine.journal(f"{unit}.service"):
        time.sleep(0.05)


# Without polkit, from 257 on nobody gets logind past a lock, root neither: the first process does not ask.
@pytest.mark.parametrize(
    ("suite", "ways"),
    [
        ("bookworm", ("logind",)),
        ("bookworm", ("systemctl",)),
        ("trixie", ("logind", "systemctl", "init")),
    ],
)
def test_a_lock_forbids_it_and_the_host_is_told_until_the_order_is_forced(machine, suite, ways) -> None:
    here = machine(suite, *ways)
    hold(here, "upgrades", "block")
    done = order(here, "--text", "not now")
    assert done.returncode == 1
    assert "FAIL" in done.stderr
    assert any(
        "refused" in line and "Upgrades forbids it: Half of it is done" in line and "inhibited" in line
        for line in here.journal(_UNIT)
    )
    assert here.systemctl("is-active", _UNIT) == "active"
    assert not (here.shared / "drained").exists()
    assert order(here, "--force").returncode == 0, here.journal(_UNIT)[-1]
    assert here.wait_end() == "poweroff"
    assert (here.shared / "drained").read_text() == "poweroff 1 \n"


def test_a_lock_that_is_given_back_before_the_deadline_was_worth_the_wait(machine) -> None:
    here = machine("trixie", "logind")
    hold(here, "upgrades", "block")
    asked = subprocess.Popen(
        here.inside(*words_for("--timeout", "60")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with asked:
        time.sleep(1)
        assert asked.poll() is None, "the host waits for its answer"
        here.systemctl("stop", "upgrades.service")
        assert asked.stderr is not None
        said = asked.stderr.read()
    assert asked.returncode == 0, (said, here.journal(_UNIT))
    assert here.wait_end() == "poweroff"


def test_a_lock_that_only_delays_is_waited_for_by_logind_after_the_answer(machine) -> None:
    here = machine("trixie", "logind")
    hold(here, "editor", "delay")
    assert order(here).returncode == 0
    preparing = ("busctl", "get-property", "org.freedesktop.login1", "/org/freedesktop/login1")
    said = here.run(*preparing, "org.freedesktop.login1.Manager", "PreparingForShutdown").stdout
    assert said == "b true\n"
    assert here.is_running
    here.systemctl("stop", "--no-block", "editor.service")
    assert here.wait_end() == "poweroff"
