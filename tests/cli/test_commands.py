# SPDX-License-Identifier: Apache-2.0
"""The command line, as people and scripts meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hvring.cli import COMMANDS
from hvring.host.client import ControlClient

HVRING = [sys.executable, "-W", "error", "-m", "hvring"]


def call(*words: str | os.PathLike[str], status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*HVRING, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr + done.stdout
    return done


def test_the_demo_is_green_and_says_what_it_did(tmp_path: Path) -> None:
    done = call("demo", "--size", "8", "--items", "60", "--keep", tmp_path)
    assert "everything was right" in done.stdout
    assert "FAIL" not in done.stdout
    assert "rehearsed" in done.stdout
    assert (tmp_path / "files" / "Grüße 世界.bin").stat().st_size == 8 << 20
    assert (tmp_path / "pools" / ".kvp_pool_0").stat().st_size == 60 * 2560


def test_the_demos_numbers_are_json() -> None:
    result = json.loads(call("demo", "--size", "4", "--items", "20", "--json").stdout)
    assert result["ok"] is True
    assert {"shutdown", "timesync", "heartbeat", "kvp", "vss", "fcopy"} == set(result["services"])
    for figures in result["services"].values():
        assert figures["exchanges"] > 0
        assert 0 < figures["median_seconds"] <= figures["p99_seconds"]
    assert all(check["ok"] for check in result["checks"])


def test_the_demo_fails_when_its_agent_dies(tmp_path: Path, start) -> None:
    demo = start("demo", "--size", "128", "--items", "5", "--keep", tmp_path)
    demo.wait_for("copying")
    children = Path(f"/proc/{demo.process.pid}/task/{demo.process.pid}/children").read_text().split()
    assert children
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    assert demo.end(0) == 1


def test_an_agent_and_a_host_talk_and_end_by_sigterm(tmp_path: Path, start) -> None:
    socket = tmp_path / "host.sock"
    host = start("host", "--socket", socket)
    agent = start("run", "--virtual", socket, "--pool-dir", tmp_path / "pools", "--json")
    for _ in range(6):
        agent.wait_for("negotiated")
    assert agent.end() == 0
    words = json.loads(agent.lines[-1])
    assert words["event"] == "summary"
    assert words["rehearsal"] is True
    assert all(line["counters"]["negotiations"] == 1 for line in words["services"].values())
    host.wait_for("heartbeat", "detached")
    assert host.end() == 0
    assert not socket.exists()


def test_a_rehearsal_says_so_on_every_line(tmp_path: Path, start) -> None:
    socket = tmp_path / "host.sock"
    start("host", "--socket", socket)
    agent = start("run", "shutdown", "vss", "--virtual", socket)
    for _ in range(2):
        agent.wait_for("event=negotiated")
    call("host", "--socket", socket, "shutdown", "--text", "good night")
    agent.wait_for("power off", "good night")
    assert agent.end(signal.SIGINT) == 0
    assert all(" rehearsal=true " in line for line in agent.lines)


@pytest.mark.parametrize("victim", ["agent", "host"])
def test_either_side_may_be_killed_and_come_back(victim: str, tmp_path: Path, start) -> None:
    socket = tmp_path / "host.sock"
    words = {
        "host": ["host", "--socket", socket],
        "agent": ["run", "kvp", "--virtual", socket, "--pool-dir", tmp_path / "pools", "--json"],
    }
    host, agent = start(*words["host"]), start(*words["agent"])
    agent.wait_for("negotiated")
    call("host", "--socket", socket, "kvp", "set", "color", "green")
    if victim == "agent":
        agent.end(signal.SIGKILL)
        host.wait_for("kvp", "detach")
        agent = start(*words["agent"])
    else:
        host.end(signal.SIGKILL)
        agent.wait_for("rescinded")
        host = start(*words["host"])
    host.wait_for("kvp", "4.0")
    assert call("host", "--socket", socket, "kvp", "get", "color").stdout.strip() == "green"


def exchanges(client: ControlClient) -> int:
    """Requests for file copy that were answered."""
    return int(client.request("status")["services"]["fcopy"]["exchanges"])


def test_an_agent_killed_in_a_copy_leaves_no_file_under_its_name_and_the_next_copy_cleans_up(
    tmp_path: Path, start
) -> None:
    socket, files, source = tmp_path / "host.sock", tmp_path / "files", tmp_path / "source"
    files.mkdir()
    source.write_bytes(os.urandom(1 << 20) * 48)
    host = start("host", "--socket", socket)
    run = ["run", "fcopy", "--virtual", socket, "--allow", files, "--json"]
    agent = start(*run)
    agent.wait_for("negotiated")
    copy = start("host", "--socket", socket, "copy", source, f"{files}/")
    with ControlClient(socket) as client:
        while exchanges(client) < 100:  # a file on its way may have no name yet
            assert copy.process.poll() is None
    agent.end(signal.SIGKILL)
    assert copy.process.wait(60) != 0
    assert not (files / "source").exists()
    host.wait_for("fcopy", "detached")
    start(*run).wait_for("negotiated")
    call("host", "--socket", socket, "copy", source, f"{files}/")
    assert [path.name for path in files.iterdir()] == ["source"]
    assert (files / "source").read_bytes() == source.read_bytes()


def test_pools_from_the_command_line(tmp_path: Path) -> None:
    pools = ["--pool-dir", tmp_path / "pools"]
    call("kvp", "set", "name", "wert ä", *pools)
    call("kvp", "set", "other", "2", "--pool", "external", *pools)
    assert call("kvp", "get", "name", "--pool", "guest", *pools).stdout == "wert ä\n"
    assert json.loads(call("kvp", "list", "--pool", "1", "--json", *pools).stdout) == [["name", "wert ä"]]
    assert call("kvp", "get", "name", *pools).stdout == "wert ä\n"  # wherever set put it
    assert call("kvp", "list", *pools).stdout == "other  2\n"
    assert "OSName" in call("kvp", "list", "--pool", "auto", *pools).stdout
    assert call("kvp", "get", "OSName", "--pool", "auto", *pools).stdout
    call("kvp", "delete", "name", *pools)
    assert "no key 'name'" in call("kvp", "delete", "name", *pools, status=1).stderr
    assert (tmp_path / "pools" / ".kvp_pool_1").stat().st_size == 0


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([], 2, "COMMAND"),
        (["run", "nonsense", "--virtual", "x"], 2, "there are shutdown, timesync"),
        (["kvp", "get", "x", "--pool", "7"], 2, "no pool is called '7'"),
        (["demo", "--size", "0"], 2, "more than 0"),
        (["host", "--socket", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (["kvp", "set", "k" * 600, "v", "--pool-dir", "/tmp/hvring-never-made"], 1, "254"),
    ],
)
def test_what_was_asked_wrongly_is_explained(words: list[str], status: int, says: str) -> None:
    assert says in call(*words, status=status).stderr


def test_version_and_help() -> None:
    assert call("--version").stdout.startswith("hvring ")
    out = call("--help").stdout
    assert all(command in out for command in ("demo", "run", "host", "kvp"))
    assert "--allow" in call("run", "--help").stdout


def test_no_command_needs_numpy() -> None:
    code = """
import sys
sys.modules["numpy"] = None
from hvring.cli import COMMANDS, _module
for name in COMMANDS:
    _module(name)
print(*COMMANDS)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(COMMANDS)


def test_a_batch_without_numpy_says_what_is_missing() -> None:
    code = (
        "import sys; sys.modules['numpy'] = None; from hvring.vmbus import arrays; arrays.descriptor_dtype()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: batches in arrays need NumPy: pip install numpy" in done.stderr


def test_the_agent_comes_without_tls_and_leaves_it_to_others() -> None:
    code = """
import sys
from hvring.cli import main
main(["run", "--config", "/nowhere.toml"])
print("asyncio" in sys.modules, "ssl" in sys.modules, "_ssl" in sys.modules)
import ssl
print(ssl.__name__)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["True False False", "ssl"]
