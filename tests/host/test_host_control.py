# SPDX-License-Identifier: Apache-2.0
"""The control socket, spoken by hand and by its client."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from scripted_guest import Guest

from hvring.errors import EndpointError
from hvring.host import Timing, VirtualHost
from hvring.host.client import ControlClient, RemoteError
from hvring.host.control import MAX_CLIENTS, VERBS, ControlServer
from hvring.ic import Status
from hvring.ic.vss import VssOperation


async def ask(reader, writer, line: bytes) -> dict:
    writer.write(line + b"\n")
    while "event" in (message := json.loads(await reader.readline())):
        pass
    return message


async def remote(path: str, verb: str, **args):
    """A verb through the blocking client, in a thread."""

    def request():
        with ControlClient(path) as client:
            return client.request(verb, **args)

    return await asyncio.to_thread(request)


async def test_every_verb_works_through_the_socket(path, tmp_path):
    source = tmp_path / "file"
    source.write_bytes(b"x" * 10_000)
    async with VirtualHost(path) as host, ControlServer(host):
        guests = [await Guest(path, name).__aenter__() for name in host.status()["services"]]
        status = await remote(path, "wait", timeout=30)
        assert {one["state"] for one in status["services"].values()} == {"ready"}
        assert await remote(path, "kvp", action="set", key="k", value="v", pool=1) == {}
        assert await remote(path, "kvp", action="set", key="n", value=5, pool=1) == {}
        assert await remote(path, "kvp", action="get", key="k", pool=1) == {"value": "v"}
        assert await remote(path, "kvp", action="list", pool=1) == {"items": [["k", "v"], ["n", 5]]}
        assert await remote(path, "kvp", action="remove", key="k", pool=1) == {"removed": True}
        assert (await remote(path, "copy", source=str(source), directory="/srv"))["size"] == 10_000
        assert (await remote(path, "backup"))["flags"] == 5
        assert (await remote(path, "time", action="sync"))["sync"] is True
        assert (await remote(path, "time", action="sample"))["sync"] is False
        await host.heartbeat.wait_contact()
        assert (await remote(path, "heartbeat"))["contact"] == "ok"
        assert await remote(path, "shutdown", restart=True, text="bye") == {}
        assert await remote(path, "toggle", service="kvp", offered=False) == {}
        assert (await remote(path, "status"))["services"]["kvp"]["state"] == "off"
        host.reports.violation("kvp", "GET", "something")
        listed = {"service": "kvp", "request": "GET", "what": "something"}
        assert await remote(path, "violations") == {"count": 1, "violations": [listed]}
        for guest in guests:
            await guest.__aexit__()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"hello", "not a line of JSON"),
        (b"[" * 5000, "not a line of JSON"),
        (b"[]", "not an object"),
        (b'{"verb": "status", "args": 5}', "not an object"),
        (b'{"verb": "fly"}', "there is no verb 'fly'; there are status, "),
        (b'{"verb": "__init__"}', "there is no verb"),
        (b'{"verb": ["status"]}', "there is no verb"),
        (b'{"verb": "status", "args": {"x": 1}}', "argument 'x' is not known"),
        (b'{"verb": "kvp", "args": {"action": "get"}}', "'key' is missing"),
        (b'{"verb": "kvp", "args": {"action": "fly", "key": "k"}}', "no action 'fly'"),
        (b'{"verb": "kvp", "args": {"action": "get", "key": 5}}', "argument 'key' cannot be 5"),
        (b'{"verb": "kvp", "args": {"action": "get", "key": "k"}}', "no guest is attached"),
        (b'{"verb": "time", "args": {"action": "stop"}}', "no action 'stop'"),
        (b'{"verb": "toggle", "args": {"service": "floppy", "offered": true}}', "no such service"),
        (b'{"verb": "wait", "args": {"timeout": 0.01}}', "no guest was ready in time"),
        (b'{"verb": "wait", "args": {"services": [[]]}}', "argument 'services' cannot be"),
        (b'{"verb": "wait", "args": {"timeout": true}}', "argument 'timeout' cannot be"),
        (b'{"verb": "wait", "args": {"timeout": NaN}}', "argument 'timeout' cannot be"),
        (b'{"verb": "wait", "args": {"timeout": 1' + b"0" * 400 + b"}}", "too large"),
        (b'{"verb": "backup", "args": {"hold": Infinity}}', "argument 'hold' cannot be"),
        (b'{"verb": "shutdown", "args": {"timeout": -1}}', "a number that does not fit its field"),
        (b'{"verb": "shutdown", "args": {"reason": 4294967296}}', "a number that does not fit its field"),
        (b'{"verb": "shutdown", "args": {"text": "\\ud800"}}', "not Unicode"),
        (b'{"verb": "shutdown", "args": {"restart": true, "hibernate": true}}', "not both"),
        (
            b'{"verb": "kvp", "args": {"action": "get", "key": "k", "pool": 256}}',
            "a number that does not fit",
        ),
        (b'{"verb": "kvp", "args": {"action": "get", "key": "' + b"k" * 256 + b'"}}', "too long"),
        (b'{"verb": "kvp", "args": {"action": "set", "key": "k", "value": -1}}', "does not go into"),
        (b'{"verb": "copy", "args": {"source": "/nonexistent", "directory": "/"}}', "No such file"),
    ],
)
async def test_what_cannot_be_done_is_answered_in_words(path, line, complaint):
    async with VirtualHost(path) as host, ControlServer(host) as control:
        reader, writer = await asyncio.open_unix_connection(control.path)
        answer = await ask(reader, writer, line)
        assert complaint in answer["error"]
        assert "result" in await ask(reader, writer, b'{"verb": "status"}'), "the connection goes on"
        writer.close()


async def test_a_guests_status_comes_through(path):
    async with VirtualHost(path) as host, ControlServer(host), Guest(path, "vss") as guest:
        guest.book.status[VssOperation.HOT_BACKUP] = Status.FAIL
        await host.wait_ready("vss")
        with pytest.raises(RemoteError, match="HOT_BACKUP with FAIL") as caught:
            await remote(path, "backup")
        assert (caught.value.kind, caught.value.status) == ("GuestStatusError", Status.FAIL)


async def test_a_client_that_leaves_ends_its_backup_with_a_thaw(path):
    async with VirtualHost(path) as host, ControlServer(host) as control, Guest(path, "vss") as guest:
        await host.wait_ready("vss")
        reader, writer = await asyncio.open_unix_connection(control.path)
        writer.write(b'{"verb": "backup", "args": {"hold": 3600}}\n')
        assert json.loads(await reader.readline()) == {"event": "frozen"}
        assert host.vss.frozen
        writer.close()
        while host.vss.frozen:
            await asyncio.sleep(0)
        assert guest.book.operations[-1] == VssOperation.THAW


async def test_a_host_that_ends_during_a_remote_backup_thaws(path):
    async with VirtualHost(path) as host, Guest(path, "vss") as guest:
        async with ControlServer(host) as control:
            await host.wait_ready("vss")
            reader, writer = await asyncio.open_unix_connection(control.path)
            writer.write(b'{"verb": "backup", "args": {"hold": 3600}}\n')
            assert json.loads(await reader.readline()) == {"event": "frozen"}
        assert guest.book.operations[-1] == VssOperation.THAW
        writer.close()


async def test_a_guest_that_never_thaws_does_not_keep_a_host_from_ending(path, monkeypatch):
    monkeypatch.setattr("hvring.host.control._LAST_WORDS", 0.05)
    monkeypatch.setattr("hvring.host.host._LAST_THAW", 0.05)
    async with (
        VirtualHost(path, timing=Timing(answer=3600, freeze=3600)) as host,
        Guest(path, "vss") as guest,
    ):
        async with ControlServer(host) as control:
            await host.wait_ready("vss")
            reader, writer = await asyncio.open_unix_connection(control.path)
            writer.write(b'{"verb": "backup", "args": {"hold": 3600}}\n')
            assert json.loads(await reader.readline()) == {"event": "frozen"}
            guest.hold = []
        await host.close()
        assert await reader.readline() == b""
        writer.close()


async def test_copying_reports_progress(path, tmp_path, monkeypatch):
    monkeypatch.setattr("hvring.host.control._PROGRESS_EVERY", 0)
    source = tmp_path / "file"
    source.write_bytes(b"x" * 10_000)
    events = []

    def request():
        with ControlClient(path) as client:
            return client.request("copy", events.append, source=str(source), directory="/srv")

    async with VirtualHost(path) as host, ControlServer(host), Guest(path, "fcopy"):
        await host.wait_ready("fcopy")
        await asyncio.to_thread(request)
    assert [(e["sent"], e["size"]) for e in events] == [(6144, 10_000), (10_000, 10_000)]


async def test_the_number_of_clients_has_a_bound(path):
    async with VirtualHost(path) as host, ControlServer(host) as control:
        idle = [await asyncio.open_unix_connection(control.path) for _ in range(MAX_CLIENTS)]
        for reader, writer in idle:
            assert "result" in await ask(reader, writer, b'{"verb": "heartbeat"}')
        with pytest.raises(RemoteError, match="32 programs drive this host already"):
            await remote(path, "heartbeat")
        idle.pop()[1].close()
        while True:
            try:
                assert await remote(path, "heartbeat") == host.status()["heartbeat"]
                break
            except RemoteError:  # the place is free a moment later
                pass
        for _, writer in idle:
            writer.close()


async def test_an_endless_line_ends_the_connection_only(path):
    async with VirtualHost(path) as host, ControlServer(host) as control:
        reader, writer = await asyncio.open_unix_connection(control.path)
        writer.write(b"x" * 100_000)
        assert await reader.read() == b""
        writer.close()
        assert (await remote(path, "status"))["socket"] == path


async def test_the_socket_is_private_and_removed(path):
    async with VirtualHost(path) as host, ControlServer(host) as control:
        assert os.stat(control.path).st_mode & 0o777 == 0o600
    assert not os.path.exists(control.path)


def test_a_client_without_a_host_says_how_to_start_one(path):
    with pytest.raises(EndpointError, match="start one with `hvring host --socket"):
        ControlClient(path)


def test_the_table_of_verbs_is_the_documented_one():
    assert set(VERBS) == {
        "status", "shutdown", "copy", "kvp", "ip", "backup", "time", "heartbeat", "toggle", "violations", "wait",
    }  # fmt: skip
