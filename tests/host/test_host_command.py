# SPDX-License-Identifier: Apache-2.0
"""``hvring host`` as a process: serving, and the verbs that drive it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys

import pytest
from scripted_guest import Guest, put

from hvring.ic import Status

HVRING = [sys.executable, "-W", "error", "-m", "hvring", "host", "--socket"]


class Served:
    """A serving ``hvring host``; what it prints, and its verbs."""

    def __init__(self, path: str, *words: str) -> None:
        self.path, self.words = path, words

    async def __aenter__(self) -> Served:
        self.process = await asyncio.create_subprocess_exec(
            *HVRING, self.path, *self.words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        while not os.path.exists(self.path + ".ctl"):
            assert self.process.returncode is None, await self.process.stderr.read()
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_) -> None:
        if self.process.returncode is None:
            await self.end()

    async def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = await self.process.communicate()
        return self.process.returncode, out.decode(), err.decode()

    async def verb(self, *words: str) -> tuple[int, str, str]:
        one = await asyncio.create_subprocess_exec(
            *HVRING, self.path, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await one.communicate()
        return one.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_serving_prints_a_line_per_event_and_ends_cleanly(path, number):
    async with Served(path) as served, Guest(path, "kvp", wait=True) as guest:
        assert (await served.verb("wait", "kvp"))[0] == 0
        guest.twist = put(24, b"\xee")
        code, _, err = await served.verb("kvp", "get", "k")
        assert (code, "IC transaction id 238" in err) == (1, True)
        code, out, err = await served.end(number)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"serving shutdown, timesync, heartbeat, kvp, vss, fcopy at {path}"
    assert lines[2:] == [
        "kvp        a guest attached",
        "kvp        negotiated framework 3.0, version 4.0",
        "kvp        violation: GET 'k': IC transaction id 238, the request had 2",
        "kvp        the host ends",
        "ended; 1 violation",
    ]
    assert not os.path.exists(path)
    assert not os.path.exists(path + ".ctl")


async def test_serving_quietly_prints_nothing(path):
    async with Served(path, "--quiet") as served:
        async with Guest(path, "kvp", wait=True):
            await served.verb("wait", "kvp")
        assert await served.end() == (0, "", "")


async def test_serving_in_json_prints_one_object_a_line(path):
    async with Served(path, "--json") as served, Guest(path, "kvp", wait=True):
        await served.verb("wait", "kvp")
        _, out, _ = await served.end()
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["attached", "negotiated", "detached"]


async def test_a_live_host_is_not_replaced_and_a_dead_one_is(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(path)
    async with Served(path) as served:
        code, _, err = await served.verb()
        assert code == 1
        assert f"another process listens on {path}" in err
        served.process.kill()
        await served.process.wait()
    assert os.path.exists(path)
    async with Served(path):
        pass


async def test_verbs_print_for_people_and_for_programs(path, tmp_path):
    source = tmp_path / "file"
    source.write_bytes(b"x" * 10_000)
    async with Served(path, "--quiet") as served:
        guests = [
            await Guest(path, name, wait=True).__aenter__() for name in ("kvp", "vss", "fcopy", "timesync")
        ]
        kvp, _, fcopy, _ = guests
        code, out, _ = await served.verb("wait", "kvp", "vss", "fcopy", "timesync", "--timeout", "30")
        assert code == 0
        header, *rows = [line.split() for line in out.splitlines()[1:]]
        assert header == ["SERVICE", "STATE", "FRAMEWORK", "VERSION", "EXCHANGES", "MEDIAN", "P99"]
        assert rows[0][:4] == ["shutdown", "waiting", "-", "-"]
        assert rows[3][:4] == ["kvp", "ready", "3.0", "4.0"]
        assert await served.verb("kvp", "set", "k", "grün", "--pool", "guest") == (0, "", "")
        assert kvp.book.items[1] == {"k": "grün"}
        assert await served.verb("kvp", "get", "k", "--pool", "1") == (0, "grün\n", "")
        kvp.book.items[1]["longer"] = "a\x1b[2J"
        assert await served.verb("kvp", "list", "--pool", "guest") == (
            0,
            "k       grün\nlonger  'a\\x1b[2J'\n",
            "",
        )
        assert await served.verb("kvp", "remove", "k", "--pool", "1") == (0, "", "")
        code, out, err = await served.verb("kvp", "get", "k", "--pool", "1")
        assert (code, out, err) == (1, "", "hvring host: the guest has no key 'k' in pool 1\n")
        code, out, _ = await served.verb("copy", str(source), "/srv", "--name", "other")
        assert (code, out[:32]) == (0, "copied 10.0 kB to /srv/other in ")
        assert fcopy.book.files == {"/srv/other": b"x" * 10_000}
        fcopy.book.status[0] = Status.ALREADY_EXISTS
        code, _, err = await served.verb("copy", str(source), "/srv")
        assert (code, "ALREADY_EXISTS (0x80070050): replace the file with --overwrite" in err) == (1, True)
        code, out, _ = await served.verb("backup")
        assert out.startswith("backed up; the guest was frozen for 0.")
        code, out, _ = await served.verb("--json", "backup")
        assert json.loads(out)["flags"] == 5
        code, out, _ = await served.verb("kvp", "list", "--pool", "1", "--json")
        assert json.loads(out) == {"items": [["longer", "a\x1b[2J"]]}
        assert (await served.verb("time", "sync"))[1].startswith("told; the guest answered in ")
        assert await served.verb("heartbeat") == (1, "no contact\n", "")
        assert await served.verb("toggle", "kvp", "off") == (0, "kvp is off\n", "")
        assert await served.verb("violations") == (0, "no violations\n", "")
        code, _, err = await served.verb("shutdown")
        assert code == 1
        assert "no guest is attached: start one with `hvring run shutdown" in err
        for guest in guests:
            await guest.__aexit__()


async def test_violations_are_listed_with_a_status_that_says_so(path):
    async with Served(path, "--quiet", "--services", "kvp") as served, Guest(path, "kvp", wait=True) as guest:
        await served.verb("wait")
        guest.twist = put(25, b"\7")
        assert (await served.verb("kvp", "set", "k", "v"))[0] == 0
        listed = "kvp: SET 'k': flags 0x7, an answer has 0x5\n"
        assert await served.verb("violations") == (1, listed, "")


async def test_ctrl_c_on_a_backup_thaws(path):
    async with Served(path, "--quiet") as served, Guest(path, "vss", wait=True) as guest:
        await served.verb("wait", "vss")
        backup = await asyncio.create_subprocess_exec(
            *HVRING, path, "backup", "--hold", "3600", stderr=asyncio.subprocess.DEVNULL
        )
        while 5 not in guest.book.operations:
            await asyncio.sleep(0.01)
        backup.send_signal(signal.SIGINT)
        await backup.wait()
        while 6 not in guest.book.operations:
            await asyncio.sleep(0.01)


async def test_a_verb_without_a_host_says_how_to_start_one(path):
    code, _, err = await Served(path).verb("status")
    assert code == 1
    assert f"start one with `hvring host --socket {path}`" in err


@pytest.mark.parametrize(
    "words",
    [("kvp", "get", "k", "--pool", "9"), ("toggle", "floppy", "on"), ("fly",), ("--services", "floppy")],
)
async def test_wrong_words_are_told_and_nothing_is_done(path, words):
    code, out, err = await Served(path).verb(*words)
    assert (code, out) == (2, "")
    assert "usage: hvring host" in err
