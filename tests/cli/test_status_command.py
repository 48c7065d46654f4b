# SPDX-License-Identifier: Apache-2.0
"""`hvring status`, `metrics`, `health`, `reload`, `freeze --plan`: a running agent is asked, or is not there."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hvring.cli import agent_findings, agents, main
from hvring.cli.agent_findings import examine_agents
from hvring.cli.findings import Level
from hvring.daemon.control.client import ControlClient
from hvring.daemon.control.protocol import ControlError
from hvring.host.client import ControlClient as Host
from hvring.host.client import RemoteError

HVRING = [sys.executable, "-m", "hvring"]


@pytest.fixture
def host(tmp_path: Path, start):
    running = start("host", "--socket", tmp_path / "host")
    running.wait_for("serving")
    return running


@pytest.fixture
def agent(tmp_path: Path, start, host) -> Iterator[Path]:
    """The control socket of an agent that is served."""
    running = start(
        *("run", "--virtual", tmp_path / "host", "--control", tmp_path / "agent"),
        *("--pool-dir", tmp_path / "pools", "--allow", tmp_path),
        start_new_session=True,
    )
    running.wait_for("serving")
    with Host(tmp_path / "host") as host:
        host.request("wait", timeout=60)
    yield tmp_path / "agent"
    assert running.end() == 0
    assert not (tmp_path / "agent").exists()


def said(capsys, *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    return (status, *capsys.readouterr())


def test_all_is_well(agent: Path, capsys) -> None:
    status, out, _ = said(capsys, "status", "--control", agent)
    assert status == 0
    assert "all is well" in out
    assert "heartbeat  open   rings  3.0        3.0" in out
    status, out, _ = said(capsys, "status", "--json", "--control", agent)
    found = json.loads(out)[str(agent)]
    assert status == 0
    assert found["services"]["vss"]["framework"] == "3.0"
    assert found["services"]["kvp"]["last_request_age"] >= 0
    assert found["process"]["rehearsal"]


def test_what_went_wrong_is_shown_with_its_remedy_until_it_works_again(agent: Path, capsys) -> None:
    source = agent.parent / "file"
    source.write_bytes(b"x" * 1000)
    with Host(agent.parent / "host") as host:
        with pytest.raises(RemoteError):
            host.request("copy", source=str(source), directory="/nowhere\x1b[2J\nforged: line")
        status, out, _ = said(capsys, "status", "--control", agent)
        assert status == 1
        assert "WRONG: fcopy" in out
        assert "what to do: " in out
        assert "\x1b" not in out
        assert not any(line.startswith("forged") for line in out.splitlines())
        (agent.parent / "in").mkdir()
        host.request("copy", source=str(source), directory=str(agent.parent / "in"))
    status, out, _ = said(capsys, "status", "--control", agent)
    assert status == 0, out
    assert "fcopy: 1 files were copied, 1000 bytes" in out
    _, out, _ = said(capsys, "metrics", "--control", agent)
    assert "hvring_fcopy_bytes_total 1000\n" in out


def test_doctor_says_what_the_agent_knows(agent: Path, monkeypatch) -> None:
    (agent.parent / "dead").symlink_to("/nowhere")
    monkeypatch.setattr(agent_findings, "sockets", lambda: [str(agent.parent / "dead"), str(agent)])
    (finding,) = examine_agents()
    assert (finding.level, "finds nothing wrong" in finding.text) == (Level.GOOD, True)
    with Host(agent.parent / "host") as host, pytest.raises(RemoteError):
        host.request("copy", source=__file__, directory="/nowhere\x1b[2J")
    (finding,) = examine_agents()
    assert (finding.level, finding.topic) == (Level.TODO, "fcopy")
    assert "\x1b" not in finding.text
    with ControlClient(agent) as client:
        client.ask("set_health", state="critical")
    assert [(each.level, each.topic) for each in examine_agents()][1:] == [(Level.NOTE, "heartbeat")]


def test_a_health_that_is_set_reaches_the_host(agent: Path, host, capsys) -> None:
    status, out, _ = said(
        capsys, "health", "set", "critical", "--text", "the disk\x1b[2J", "--control", agent
    )
    assert (status, "\x1b" in out) == (0, False)
    host.wait_for("applications critical")
    status, out, _ = said(capsys, "status", "--control", agent)
    assert status == 1
    assert "applications are critical" in out
    status, out, _ = said(capsys, "health", "show", "--json", "--control", agent)
    assert (status, json.loads(out)["state"]) == (0, "critical")
    assert said(capsys, "health", "set", "none", "--control", agent)[0] == 0
    assert said(capsys, "status", "--control", agent)[0] == 0
    with pytest.raises(SystemExit, match="2"):
        main(["health", "set", "splendid", "--control", str(agent)])


def test_a_reload_says_what_came_of_it(agent: Path, capsys) -> None:
    assert said(capsys, "reload", "--control", agent)[:2] == (0, "nothing changed\n")


def test_metrics_are_served_where_the_file_says_and_elsewhere_after_a_reload(
    tmp_path: Path, start, ports: list[int], capsys
) -> None:
    file, control = tmp_path / "hvring.toml", tmp_path / "agent"

    def write(port: int | None) -> None:
        listen = "" if port is None else f'[metrics]\nlisten = "127.0.0.1:{port}"\n'
        file.write_text(f'{listen}[control]\nsocket = "{control}"\n[kvp]\npool_directory = "{tmp_path}/p"\n')

    write(ports[0])
    start("run", "kvp", "--config", file, "--virtual", tmp_path / "host").wait_for("serving")
    wait_for_socket(control)
    assert 'hvring_service_state{service="kvp",state="waiting"} 1\n' in page(ports[0])
    write(ports[1])
    status, out, _ = said(capsys, "reload", "--control", control)
    assert (status, "not applied" in out) == (0, False)
    assert 'hvring_ok{agent="kvp"} 1\n' in page(ports[1])
    with pytest.raises(ConnectionRefusedError):
        page(ports[0])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", ports[2]))
        taken.listen()
        write(ports[2])
        status, out, _ = said(capsys, "reload", "--control", control)
        assert (status, "not applied: metrics.listen" in out) == (1, True)
    assert 'hvring_ok{agent="kvp"} 1\n' in page(ports[1])
    write(None)
    assert said(capsys, "reload", "--control", control)[0] == 0
    with pytest.raises(ConnectionRefusedError):
        page(ports[1])
    assert f"configuration: {file}, read " in said(capsys, "status", "--control", control)[1]


def page(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connected:
        connected.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        return b"".join(iter(lambda: connected.recv(65536), b"")).decode()


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """Three that nobody listens on, and that nobody is given meanwhile who does not ask for them by number."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # who does may have it
        yield [each.getsockname()[1] for each in sockets]


def test_changes_come_as_lines_while_they_happen(agent: Path, start) -> None:
    as_lines = start("status", "--watch", "--control", agent)
    as_objects = start("status", "--watch", "--json", "--control", agent)
    as_lines.wait_for("all is well")
    as_objects.wait_for('"result"')
    with Host(agent.parent / "host") as host:
        host.request("backup", hold=0)
    as_lines.wait_for("vss: frozen")
    as_lines.wait_for("vss: thawed")
    assert "changed" in json.loads(as_objects.wait_for("thawed"))
    assert as_lines.end(signal.SIGINT) == 130


def test_an_agent_that_is_frozen_answers(agent: Path, frozen_by) -> None:
    with Host(agent.parent / "host") as host, ControlClient(agent) as client:
        with frozen_by(host):
            found = client.ask("status")
            assert found["quiet"]
            assert found["services"]["vss"]["frozen_for"] > 0
            with pytest.raises(ControlError, match="frozen now"):
                client.ask("plan")
            assert "hvring_vss_frozen 1\n" in client.ask("metrics")["text"]
        after = next(message["result"] for message in client.watch() if not message["result"]["quiet"])
        assert after["services"]["vss"]["frozen_for"] is None
        assert after["services"]["vss"]["seconds_frozen"] > 0


def test_a_terminal_is_drawn_anew_with_each_change(agent: Path) -> None:
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(
        [*HVRING, "status", "--watch", "--control", str(agent)], stdout=theirs, stdin=theirs
    )
    os.close(theirs)
    try:
        shown = read_until(ours, b"all is well")
        assert shown.count(b"\x1b[2J") == 1
        with Host(agent.parent / "host") as host:
            host.request("kvp", action="set", key="\x1b[2Jevil", value="x", pool=0)
        shown = read_until(ours, b"kvp: changed")
        assert shown.count(b"\x1b[2J") == 1
        assert b"\\x1b[2Jevil" in read_until(ours, b"in pool 0", shown)
    finally:
        watching.kill()
        watching.wait()
        os.close(ours)


def read_until(descriptor: int, words: bytes, shown: bytes = b"") -> bytes:
    while words not in shown:
        shown += os.read(descriptor, 65536)
    return shown


def test_the_plan_of_the_agent_is_by_its_settings(agent: Path, capsys) -> None:
    status, out, _ = said(capsys, "freeze", "--plan", "--json", "--control", agent)
    plan = json.loads(out)
    assert plan["by"] == str(agent)
    assert status == any(each["problem"] is not None for each in plan["order"])
    assert {"order", "skipped", "hazards", "notes", "obstacle"} <= plan.keys()
    mine = {hazard["what"].split(" (")[0] for hazard in plan["hazards"] if hazard["kind"] == "own_files"}
    mine -= {"the pools", "a directory for copies"}
    assert mine <= {"the log", "what this process complains of", "the control socket"}
    _, text, _ = said(capsys, "freeze", "--plan", "--control", agent)
    assert f"found by the agent at {agent}; nothing is frozen" in text


@pytest.mark.parametrize("command", [["status"], ["metrics"], ["reload"], ["health", "show"]])
def test_nobody_is_there(tmp_path: Path, capsys, monkeypatch, command: list[str]) -> None:
    monkeypatch.setattr(agents, "sockets", list)
    status, out, err = said(capsys, *command)
    assert (status, out) == (3, "")
    assert "hvring run" in err
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    for path in (tmp_path / "dead", tmp_path / "nothing"):
        status, out, err = said(capsys, *command, "--control", path)
        assert (status, out) == (3, "")
        assert f"no agent listens at {path}" in err


def test_all_agents_of_the_directory_are_asked(agent: Path, capsys, monkeypatch) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(agent.parent / "dead"))
    monkeypatch.setattr(agents, "sockets", lambda: [str(agent), str(agent.parent / "dead")])
    status, out, _ = said(capsys, "status", "--json")
    assert (status, list(json.loads(out))) == (0, [str(agent)])


@pytest.mark.parametrize("command", ["status", "metrics"])
def test_an_agent_of_another_version_is_said_to_be_one(
    tmp_path: Path, capsys, monkeypatch, command: str
) -> None:
    monkeypatch.setattr(
        f"hvring.cli.{command}.ask_each", lambda *_: ({"/s": {"services": [], "process": 3}}, {})
    )
    status, out, err = said(capsys, command)
    assert status == 1
    assert "another version of hvring" in out + err


def test_an_agent_without_heartbeats_says_so(tmp_path: Path, start, capsys) -> None:
    control = tmp_path / "agent"
    running = start(
        "run", "kvp", "--virtual", tmp_path / "host", "--control", control, "--pool-dir", tmp_path / "p"
    )
    running.wait_for("serving")
    wait_for_socket(control)
    status, _, err = said(capsys, "health", "set", "healthy", "--control", control)
    assert (status, "does not serve heartbeats" in err) == (1, True)
    status, _, err = said(capsys, "freeze", "--plan", "--control", control)
    assert (status, "makes no backups" in err) == (1, True)
    status, out, _ = said(capsys, "status", "--control", control)
    assert status == 0
    assert "waiting" in out


def test_two_agents_do_not_share_a_socket(tmp_path: Path, start) -> None:
    control = tmp_path / "agent"
    first = start(
        "run", "kvp", "--virtual", tmp_path / "h", "--control", control, "--pool-dir", tmp_path / "p"
    )
    first.wait_for("serving")
    wait_for_socket(control)
    words = ["run", "kvp", "--virtual", tmp_path / "h", "--control", control, "--pool-dir", tmp_path / "p"]
    done = subprocess.run(
        [sys.executable, "-m", "hvring", *map(str, words)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"(process {first.process.pid})" in done.stderr
    with ControlClient(control) as client:
        assert client.ask("status")["process"]["pid"] == first.process.pid


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\n", b"[]\n", b'{"result": 1}\n', b"[" * 5000 + b"\n", b'{"re']
)
def test_what_is_no_agent_is_said_to_be_none(tmp_path: Path, capsys, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()

        def serve() -> None:
            connected, _ = listening.accept()
            with connected:
                connected.recv(1000)
                connected.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        status, out, err = said(capsys, "status", "--control", tmp_path / "s")
        serving.join()
    assert (status in (1, 3), out) == (True, "")
    assert "no agent" in err or "ended before it answered" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_stranger_hears_why(agent: Path) -> None:
    program = (
        "import os, sys\n"
        "from hvring.cli import main\n"
        "main(['status', '--control', '/nothing'])\n"  # who is nobody may import nothing
        "os.setgroups([])\n"
        "os.setgid(65534)\n"
        "os.setuid(65534)\n"
        "sys.exit(main(['status', '--control', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(agent)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "only root, the agent's own user and the members of control.group" in done.stderr


def wait_for_socket(path: Path) -> None:
    """The log line comes before it."""
    while True:
        try:
            with ControlClient(path) as client:
                client.ask("status")
        except Exception:
            time.sleep(0.01)
            continue
        return
