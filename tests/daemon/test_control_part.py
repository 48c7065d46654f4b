# SPDX-License-Identifier: Apache-2.0
"""Where an agent listens by itself, and that its answers need no disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hvring.agent.agent import Agent
from hvring.daemon.control import part
from hvring.daemon.control.client import sockets
from hvring.daemon.control.part import make_directory, socket_path
from hvring.daemon.control.peer import Peer
from hvring.daemon.control.protocol import ControlError
from hvring.daemon.control.server import Asked
from hvring.daemon.control.verbs import verbs
from hvring.daemon.health import HealthRegister
from hvring.daemon.settings import ControlSettings
from hvring.daemon.status import Status
from hvring.errors import EndpointError
from hvring.vmbus import SERVICE_NAMES


@pytest.mark.parametrize(
    ("socket", "names", "real", "expected"),
    [
        ("auto", SERVICE_NAMES, True, "/run/hvring/agent.sock"),
        ("auto", ["kvp"], True, "/run/hvring/kvp.sock"),
        ("auto", ["kvp", "vss"], True, "/run/hvring/kvp-vss.sock"),
        ("auto", ["kvp"], False, None),
        ("none", ["kvp"], True, None),
        ("/x/y", ["kvp"], False, "/x/y"),
    ],
)
def test_each_set_of_services_has_a_socket_of_its_own(
    monkeypatch, socket: str, names: list[str], real: bool, expected: str | None
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert socket_path(ControlSettings(socket), names, real=real) == expected
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert socket_path(ControlSettings(socket), names, real=real) == (expected if socket != "auto" else None)


def test_the_usual_directory_is_made_and_nothing_else_is_taken_for_it(tmp_path: Path, monkeypatch) -> None:
    usual = tmp_path / "hvring"
    monkeypatch.setattr(part, "DIRECTORY", str(usual))
    for _ in range(2):
        make_directory(f"{usual}/kvp.sock")
        assert usual.stat().st_mode & 0o777 == 0o755
    usual.chmod(0o777)
    with pytest.raises(EndpointError, match="everybody's"):
        make_directory(f"{usual}/kvp.sock")
    usual.rmdir()
    usual.symlink_to(tmp_path)
    with pytest.raises(EndpointError, match="no directory"):
        make_directory(f"{usual}/kvp.sock")
    make_directory(str(tmp_path / "elsewhere" / "sock"))
    assert not (tmp_path / "elsewhere").exists()


def test_agents_are_found_in_the_directory_and_in_those_of_their_units(tmp_path: Path) -> None:
    for name in ("agent.sock", "kvp/kvp.sock", "vss/vss.sock", "vss/other", "guardian", "a/b/c.sock"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "kvp")
    assert sockets(str(tmp_path)) == [
        f"{tmp_path}/{name}" for name in ("agent.sock", "kvp/kvp.sock", "vss/vss.sock")
    ]
    assert sockets(str(tmp_path / "nothing")) == []


def test_who_asks_for_too_much_is_told_to_wait() -> None:
    """Each health that is set and each reload is a line in the log, each plan a process."""
    told: list[str] = []
    refused: set[str] = set()
    status = Status(Agent([], None), rehearsal=True, health=HealthRegister())  # type: ignore[arg-type]

    async def plan() -> dict[str, object]:
        return {}

    found = verbs(status, lambda *said, **_: told.append(said[0]), reload=list, plan=plan)
    root = Peer(1, 0, 0)
    for _ in range(200):
        for verb, args in (("set_health", {"state": "healthy"}), ("reload", {})):
            try:
                found[verb](Asked(args, root))
            except ControlError as error:
                refused.add(error.kind)
        assert found["status"](Asked({}, root))
    assert refused == {"busy"}
    assert {"health", "control"} == set(told)
    assert len(told) < 100


WITHOUT_A_DISK = """
    import asyncio, json, os, socket, sys
    from hvring.agent.agent import Agent
    from hvring.agent.settings import Settings
    from hvring.agent.standard import standard_services
    from hvring.daemon.control.server import ControlServer
    from hvring.daemon.control.verbs import verbs
    from hvring.daemon.health import HealthRegister
    from hvring.daemon.status import Status
    from hvring.events import Event, EventKind

    seen = []
    watching = False

    def hook(event, args):
        if watching and event.split(".")[0] in ("open", "import", "os", "shutil", "glob", "exec"):
            seen.append((event, args[:1]))

    async def main():
        global watching
        never = asyncio.get_running_loop().create_future()

        async def opener(name):
            return await never

        agent = Agent(standard_services(Settings()), opener)
        status = Status(agent, rehearsal=True, health=HealthRegister())

        async def plan():
            return {}

        server = ControlServer(
            sys.argv[1], verbs(status, lambda *_, **__: None, reload=list, plan=plan), status.snapshot
        )
        await server.start()
        sys.addaudithook(hook)
        watching = True
        reader, writer = await asyncio.open_unix_connection(sys.argv[1])
        for verb in ("status", "metrics", "health", "set_health", "nothing", "watch"):
            writer.write(json.dumps({"verb": verb}).encode() + b"\\n")
            assert json.loads(await reader.readline()), verb
        server.changed(Event("vss", EventKind.FROZEN))
        assert json.loads(await reader.readline())
        watching = False
        writer.close()
        server.close()
        never.cancel()

    asyncio.run(main())
    print(seen)
"""


def test_answers_touch_no_file_not_even_the_first_ones(tmp_path: Path) -> None:
    """While file systems are frozen each of these may wait for the thaw."""
    words = [sys.executable, "-c", textwrap.dedent(WITHOUT_A_DISK), str(tmp_path / "s")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


IN_A_RUN_OF_ITS_OWN = """
set -e
mount -t tmpfs tmpfs /run
{python} -m hvring host --socket "$1/host" >/dev/null & host=$!
{python} -m hvring run heartbeat --real --virtual "$1/host" >"$1/log" 2>&1 & agent=$!
trap 'kill $agent $host; wait' EXIT
tries=0
until {python} -m hvring status >"$1/status" 2>/dev/null; do
  tries=$((tries + 1)); [ $tries -lt 200 ]
done
cat "$1/status"
stat -c '%a %n' /run/hvring /run/hvring/*
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_a_real_agent_is_found_without_being_named(tmp_path: Path) -> None:
    script = IN_A_RUN_OF_ITS_OWN.replace("{python}", sys.executable)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert "/run/hvring/heartbeat.sock" in done.stdout
    assert "all is well" in done.stdout
    assert "755 /run/hvring\n600 /run/hvring/heartbeat.sock\n" in done.stdout
