# SPDX-License-Identifier: Apache-2.0
"""The control socket: who may speak, what comes back, and that nothing a client does hurts anybody."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hvring.daemon.control.protocol import LARGEST_REQUEST, ControlError
from hvring.daemon.control.server import CLIENTS, Asked, ControlServer
from hvring.errors import EndpointError
from hvring.events import Event, EventKind

LONG = 30.0


class Agent:
    """What a server speaks for."""

    def __init__(self) -> None:
        self.asked = 0
        self.go_on = asyncio.Event()

    def status(self) -> dict[str, Any]:
        self.asked += 1
        return {"ok": True, "asked": self.asked}

    async def slow(self, asked: Asked) -> dict[str, Any]:
        await self.go_on.wait()
        return dict(asked.args)

    def refuses(self, asked: Asked) -> dict[str, Any]:
        raise ControlError("not now", "frozen")

    def broken(self, asked: Asked) -> dict[str, Any]:
        raise KeyError("of a bug")


@asynccontextmanager
async def served(path: Path, **options: Any) -> AsyncIterator[tuple[ControlServer, Agent]]:
    agent = Agent()
    verbs = {
        "status": lambda asked: agent.status(),
        "slow": agent.slow,
        "refuses": agent.refuses,
        "broken": agent.broken,
    }
    server = ControlServer(str(path), verbs, agent.status, **{"patience": LONG, **options})
    await server.start()
    try:
        yield server, agent
    finally:
        server.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


async def ask(path: Path, *lines: bytes, eof: bool = False) -> list[dict[str, Any]]:
    """What comes back, one answer a line, until the other side ends or all is answered."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(b"".join(lines))
        if eof:
            writer.write_eof()
        answers = []
        while eof or len(answers) < b"".join(lines).count(b"\n"):
            line = await reader.readline()
            if not line:
                break
            answers.append(json.loads(line))
        return answers
    finally:
        writer.close()


STATUS = b'{"verb": "status"}\n'


def test_a_line_is_answered_by_a_line_and_errors_have_their_kind(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path / "s") as (_, agent):
            agent.go_on.set()
            found = await ask(
                tmp_path / "s",
                STATUS,
                b'{"verb": "slow", "args": {"a": 1}}\n',
                b'{"verb": "refuses"}\n',
                b'{"verb": "nothing"}\n',
                b'{"verb": "status", "args": []}\n',
                b"[" * 1000 + b"\n",
                b"\xff\n",
            )
            assert found[0] == {"result": {"ok": True, "asked": 1}}
            assert found[1] == {"result": {"a": 1}}
            assert found[2] == {"error": "not now", "kind": "frozen"}
            assert "broken, refuses, slow, status, watch" in found[3]["error"]
            assert [one["kind"] for one in found[3:]] == ["request"] * 4

    run(main())


def test_a_bug_of_a_verb_is_told_and_the_next_request_answered(tmp_path: Path, caplog) -> None:
    async def main() -> None:
        async with served(tmp_path / "s"):
            found = await ask(tmp_path / "s", b'{"verb": "broken"}\n', STATUS)
            assert found[0]["kind"] == "failed"
            assert found[1]["result"]["ok"]

    run(main())
    assert "a request on the control socket failed" in caplog.text


def test_who_has_nothing_more_to_say_is_still_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path / "s") as (_, agent):
            agent.go_on.set()
            assert len(await ask(tmp_path / "s", STATUS, b'{"verb": "slow"}\n', STATUS, eof=True)) == 3
            assert await ask(tmp_path / "s", STATUS, b"no end", eof=True) == [
                {"result": {"ok": True, "asked": 3}}
            ]
            assert await ask(tmp_path / "s", eof=True) == []

    run(main())


@pytest.mark.parametrize("size", [LARGEST_REQUEST, LARGEST_REQUEST + 1, 3 * LARGEST_REQUEST])
def test_a_request_without_an_end_is_refused_and_nobody_keeps_it(tmp_path: Path, size: int) -> None:
    async def main() -> None:
        async with served(tmp_path / "s"):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b"x" * size)
            answer = json.loads(await reader.readline())
            assert answer["kind"] == "request"
            assert str(LARGEST_REQUEST) in answer["error"]
            assert await reader.read() == b""
            writer.close()
            assert (await ask(tmp_path / "s", STATUS))[0]["result"]["ok"]

    run(main())


def test_the_largest_request_is_taken(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path / "s"):
            line = STATUS[:-1].ljust(LARGEST_REQUEST - 1) + b"\n"
            assert (await ask(tmp_path / "s", line))[0]["result"]["ok"]

    run(main())


@given(st.binary(max_size=4000))
@example(b"\n\n\n")
@example(b'{"verb": "watch"}\n{"verb": "watch"}\n')
@example(b'{"verb": "status", "args": {"x": ' + b"9" * 5000 + b"}}\n")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bytes_come_others_are_answered(tmp_path: Path, data: bytes) -> None:
    async def main() -> None:
        async with served(tmp_path / "s"):
            _, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(data)
            assert (await ask(tmp_path / "s", STATUS))[0]["result"]["ok"]
            for answer in await ask(tmp_path / "s", data, eof=True):
                assert answer.keys() & {"result", "error"}
            writer.close()

    run(main())


def test_who_says_nothing_is_told_so_and_hung_up_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path / "s", patience=1.0):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b'{"verb": ')
            assert "no request came" in json.loads(await reader.readline())["error"]
            assert await reader.read() == b""
            writer.close()

    run(main())


def test_work_that_takes_its_time_has_it(tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        before = live_timers(loop)
        async with served(tmp_path / "s") as (server, agent):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            await until(lambda: live_timers(loop) > before)
            writer.write(b'{"verb": "slow"}\n')
            await until(lambda: any(task.get_name() == "asked" for task in asyncio.all_tasks()))
            await until(lambda: live_timers(loop) == before)  # nobody will lose patience
            agent.go_on.set()
            assert "result" in json.loads(await reader.readline())
            writer.close()
            agent.go_on.clear()
            _, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b'{"verb": "slow"}\n')
            writer.close()  # a client that has left cannot be told from one that only has no more to say
            await until(lambda: any(task.get_name() == "asked" for task in asyncio.all_tasks()))
            agent.go_on.set()
            await until(lambda: not server._clients)

    run(main())


def test_one_client_too_many_is_told_so_and_comes_in_when_another_left(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path / "s"):
            clients = [await asyncio.open_unix_connection(tmp_path / "s") for _ in range(CLIENTS)]
            for reader, writer in clients:
                writer.write(STATUS)
                assert await reader.readline()
            assert "too many" in (await ask(tmp_path / "s", STATUS))[0]["error"]
            clients[0][1].close()
            await clients[0][1].wait_closed()
            while "error" in (await ask(tmp_path / "s", STATUS))[0]:
                await asyncio.sleep(0)
            for _, writer in clients:
                writer.close()

    run(main())


def test_a_flood_of_one_leaves_the_others_their_turns(tmp_path: Path) -> None:
    """Ten thousand requests at once: one who asks one thing meanwhile is answered long before they all are."""

    async def main() -> None:
        async with served(tmp_path / "s") as (_, agent):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(STATUS * 10_000)
            await reader.readline()
            found = await ask(tmp_path / "s", STATUS)
            assert found[0]["result"]["asked"] < 5000
            writer.close()

    run(main())


def test_answers_that_nobody_reads_are_not_piled_up(tmp_path: Path) -> None:
    async def main() -> None:
        big = "x" * 20_000
        async with served(tmp_path / "s") as (server, agent):
            agent.status = lambda: {"big": big}  # type: ignore[method-assign]
            _, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(STATUS * 1000)  # 20 MB of answers
            (client,) = await clients_of(server)
            await until(lambda: client._is_full)
            for _ in range(100):
                await asyncio.sleep(0)
            assert client._transport.get_write_buffer_size() < 200_000
            writer.close()

    run(main())


def test_changes_are_told_to_those_who_watch_and_a_burst_in_one_line(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path / "s") as (server, _):
            server.changed(Event("kvp", EventKind.OPENED))  # before anybody watches
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b'{"verb": "watch"}\n')
            assert json.loads(await reader.readline()) == {"result": {"ok": True, "asked": 1}}
            for number in range(100):
                server.changed(Event("vss", EventKind.FROZEN, f"\x1b[2J{number}\ud800", {"n": number}))
            line = await reader.readline()
            assert line.isascii()
            told = json.loads(line)
            assert [one["facts"]["n"] for one in told["changed"]] == list(range(64))
            assert told["left_out"] == 36
            assert told["result"]["asked"] == 2
            writer.close()

    run(main())


def test_who_watches_and_does_not_read_is_dropped_and_costs_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path / "s") as (server, agent):
            server._status = lambda: {"big": "x" * 100_000}
            quiet = socket.socket(socket.AF_UNIX)
            quiet.connect(str(tmp_path / "s"))
            quiet.sendall(b'{"verb": "watch"}\n')
            (client,) = await clients_of(server)
            await until(lambda: client.watches)
            while client in server._clients:
                server.changed(Event("kvp", EventKind.CHANGED))
                assert client._transport is None or client._transport.get_write_buffer_size() < 1_000_000
                await asyncio.sleep(0.01)
            quiet.close()
            assert (await ask(tmp_path / "s", STATUS))[0]["result"]["ok"]

    run(main())


def test_with_nobody_connected_nothing_is_due(tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        before = live_timers(loop)
        async with served(tmp_path / "s") as (server, _):
            assert live_timers(loop) == before
            await ask(tmp_path / "s", STATUS)
            await until(lambda: not server._clients)
            server.changed(Event("kvp", EventKind.CHANGED))
            assert live_timers(loop) == before

    run(main())


def test_the_path_is_its_owners_replaces_a_dead_ones_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def main() -> None:
        async with served(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(EndpointError, match=f"process {os.getpid()}"):
                await ControlServer(str(path), {}, dict).start()
        assert not path.exists()
        (tmp_path / "target").write_text("precious")
        path.symlink_to(tmp_path / "target")
        with pytest.raises(EndpointError, match="not a socket"):
            await ControlServer(str(path), {}, dict).start()
        assert (tmp_path / "target").read_text() == "precious"

    run(main())


# ------------------------------------------------------------------------- strangers

NOBODY, GROUP = 65534, 54321
CLIENT = """
import os, socket, sys
path, uid, gid, groups = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.setgroups([int(g) for g in groups.split(",") if g])
os.setgid(gid)
os.setuid(uid)
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(path)
except PermissionError:
    print("EACCES")
    sys.exit()
try:
    s.sendall(b'{"verb": "status"}\\n')
except OSError:
    pass
print(s.makefile().readline())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(
    ("mode", "group", "uid", "gid", "groups", "expected"),
    [
        (0o600, None, NOBODY, NOBODY, "", "EACCES"),
        (0o666, None, NOBODY, NOBODY, "", "only processes of root"),  # somebody changed the mode
        (0o666, GROUP, NOBODY, NOBODY, "1,2", f"and of group {GROUP}"),
        (0o660, GROUP, NOBODY, NOBODY, f"1,{GROUP}", '"ok": true'),
        (0o660, GROUP, NOBODY, GROUP, "", '"ok": true'),
        (0o600, None, 0, NOBODY, "", '"ok": true'),
    ],
)
def test_strangers_are_refused_in_words(
    mode: int, group: int | None, uid: int, gid: int, groups: str, expected: str
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="hvring-control-", dir="/tmp"))  # which others can reach
    folder.chmod(0o755)
    path = folder / "s"

    async def main() -> None:
        async with served(path, group=group):
            assert stat.S_IMODE(path.stat().st_mode) == (0o600 if group is None else 0o660)
            path.chmod(mode)
            words = [sys.executable, "-c", CLIENT, str(path), str(uid), str(gid), groups]
            child = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)
            out, _ = await child.communicate()
            assert expected in out.decode()

    try:
        run(main())
    finally:
        folder.rmdir()


# ------------------------------------------------------------------------- inside


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)


async def clients_of(server: ControlServer) -> list[Any]:
    await until(lambda: bool(server._clients))
    return list(server._clients)


def live_timers(loop: Any) -> int:
    return sum(not handle.cancelled() for handle in loop._scheduled)
