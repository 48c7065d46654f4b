# SPDX-License-Identifier: Apache-2.0
"""Real file systems in a private mount namespace: an agent that has frozen them is asked how it is, and one that is
about to is asked what it would do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hvring.daemon.control.client import ControlClient
from hvring.guest.mounts import Mount
from hvring.guest.preflight import try_to_open
from hvring.host.client import ControlClient as Host

pytestmark = pytest.mark.root

HVRING = (sys.executable, "-m", "hvring")


def plan(namespace: Any, *words: str) -> dict[str, Any]:
    """As of `hvring freeze --plan` inside."""
    done = subprocess.run(
        namespace.inside(*HVRING, "freeze", "--plan", "--json", *words),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_the_plan_has_an_image_before_what_it_lies_on_and_says_who_waits(namespace: Any) -> None:
    outer = namespace.mount_image("outer", size=32)
    inner = namespace.mount_image("inner", outer)
    both = plan(namespace, "--only", outer, "--only", inner, "--loop", outer, "--loop", inner)
    assert [each["target"] for each in both["order"]] == [inner, outer]
    assert [each["problem"] for each in both["order"]] == [None, None]
    assert ("loop", inner) in [(hazard["kind"], hazard["target"]) for hazard in both["hazards"]]
    one = plan(namespace, "--only", outer, "--loop", outer)
    assert [each["target"] for each in one["order"]] == [outer]
    (hazard,) = [hazard for hazard in one["hazards"] if hazard["target"] == inner]
    assert "who writes to it waits" in hazard["what"]
    assert {"target": inner, "why": "not asked for"}.items() <= next(
        each for each in one["skipped"] if each["target"] == inner
    ).items()


def test_a_mount_that_hangs_is_given_up(hang: Callable[[str], str], namespace: Any) -> None:
    target = hang("hung")
    keeper = namespace._keeper.pid
    behind = Mount(1, "8:1", target, "ext4", "/dev/x", False, process=keeper)
    assert try_to_open(behind, 0.2) == -1


@pytest.fixture
def scene(namespace: Any, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A mount that a backup freezes for real, with the agent's log and control socket on it; and the host."""
    mount = namespace.mount_image("a")
    host = tmp_path / "host"
    with ExitStack() as stack:
        serving = subprocess.Popen(
            [*HVRING, "host", "--socket", str(host)], stdout=subprocess.PIPE, text=True
        )
        stack.callback(serving.communicate)
        stack.callback(serving.terminate)
        assert serving.stdout is not None
        assert "serving" in serving.stdout.readline()
        words = ("run", "vss", "kvp", "--real", "--virtual", str(host), "--only", mount, "--loop", mount)
        with open(tmp_path / "errors", "w") as errors:
            agent = subprocess.Popen(
                namespace.inside(
                    *("sh", "-c", 'exec "$@" >"$0/log"', mount),
                    *(*HVRING, *words, "--control", f"{mount}/agent", "--pool-dir", f"{mount}/pools"),
                ),
                stderr=errors,
            )
        stack.callback(agent.wait)
        stack.callback(agent.terminate)
        with Host(host) as client:
            client.request("wait", services=["vss", "kvp"], timeout=60)
        yield mount, host


def test_an_agent_that_has_frozen_its_own_log_and_socket_answers(
    scene: tuple[str, Path], namespace: Any, frozen_by: Any
) -> None:
    mount, path = scene
    inside = f"/proc/{namespace._keeper.pid}/root{mount}/agent"
    with Host(path) as host, ControlClient(inside) as before:
        assert before.ask("status")["services"]["vss"]["frozen_for"] is None
        with frozen_by(host):
            with ControlClient(inside) as client:  # one that comes while all is frozen
                found = client.ask("status")
                assert found["quiet"]
                assert found["services"]["vss"]["backup"] == "frozen"
                assert found["services"]["vss"]["frozen_for"] > 0
                assert "hvring_vss_frozen 1\n" in client.ask("metrics")["text"]
            assert before.ask("status")["quiet"]
        watching = before.watch()
        after = next(message["result"] for message in watching if not message["result"]["quiet"])
        assert after["services"]["vss"]["seconds_frozen"] > 0
        assert after["services"]["vss"]["frozen_for"] is None
        assert after["ok"]
