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

from hvring.ic import KvpIpInfo, Status
from hvring.transport.virtual import connect

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_reader_that_does_not_read_holds_neither_guests_nor_the_end_up(path, number):
    """As a pager does that waits for a key: the pipe is full, and a write to it waits."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    served = Served(path)
    served.process = await asyncio.create_subprocess_exec(*HVRING, path, stdout=writing)
    os.close(writing)
    async with Guest(path, "kvp", wait=True):
        assert (await served.verb("wait", "kvp"))[0] == 0
        assert await served.verb("kvp", "set", "k", "v") == (0, "", "")
    served.process.send_signal(number)
    assert await served.process.wait() == 0
    os.close(reading)


async def test_nobody_need_have_been_there_to_read(path):
    """Started as ``hvring host … >&-``."""
    started = (sys.executable, "-c", "import os, sys; os.close(1); os.execv(sys.argv[1], sys.argv[1:])")
    served = Served(path)
    served.process = await asyncio.create_subprocess_exec(
        *started, *HVRING, path, stderr=asyncio.subprocess.PIPE
    )
    async with Guest(path, "kvp", wait=True):
        assert (await served.verb("wait", "kvp"))[0] == 0
    served.process.send_signal(signal.SIGTERM)
    assert (await served.process.communicate(), served.process.returncode) == ((None, b""), 0)


async def test_a_reader_that_leaves_is_no_failure(path):
    reading, writing = os.pipe()
    served = Served(path)
    served.process = await asyncio.create_subprocess_exec(
        *HVRING, path, stdout=writing, stderr=asyncio.subprocess.PIPE
    )
    os.close(writing)
    os.close(reading)
    async with Guest(path, "kvp", wait=True):
        assert (await served.verb("wait", "kvp"))[0] == 0
    served.process.send_signal(signal.SIGTERM)
    assert (await served.process.communicate(), served.process.returncode) == ((None, b""), 0)


@pytest.mark.parametrize("opened", [False, True], ids=["nobody writes", "somebody writes nothing"])
async def test_a_source_that_never_answers_holds_neither_guests_nor_the_end_up(path, tmp_path, opened):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with Served(path) as served, Guest(path, "kvp", wait=True), Guest(path, "fcopy", wait=True):
        await served.verb("wait", "kvp", "fcopy")
        copy = await asyncio.create_subprocess_exec(*HVRING, path, "copy", str(fifo), "/srv", stderr=-3)
        writer = await asyncio.to_thread(os.open, fifo, os.O_WRONLY) if opened else -1
        assert await served.verb("kvp", "set", "k", "v") == (0, "", "")
        code, _, err = await asyncio.wait_for(served.end(), 30)
        assert (code, err) == (0, "")
        await copy.wait()
        if opened:
            os.close(writer)


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
            "k       grün\nlonger  a\\x1b[2J\n",
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


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("kvp", "get", "k" * 256), "is too long: 256 UTF-16 units, 255 fit"),
        (("kvp", "set", "k", "v" * 1024), "is too long: 1024 UTF-16 units, 1023 fit"),
        (("shutdown", "--reason", "0x100000000"), "a number that does not fit"),
        (("shutdown", "--timeout", "-1"), "a number that does not fit"),
        (("shutdown", "--text", "x" * 2048), "the text must be shorter"),
        (("backup", "--hold", "nan"), "cannot be nan"),
        (("wait", "--timeout", "inf"), "cannot be inf"),
        (("wait", "floppy"), "no such service: floppy"),
        (("kvp", "get", "\x1b[2J"), "no guest is attached"),
    ],
)
async def test_what_cannot_be_asked_is_one_sentence(path, words, complaint):
    async with Served(path, "--quiet") as served:
        code, out, err = await served.verb(*words)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert complaint in err
    assert err[:-1].isprintable()


async def test_nothing_that_a_guest_says_steers_the_terminal(path):
    evil = "\x1b]0;x\a\x9b2J\u202e\r\n"
    async with Served(path) as served, Guest(path, "kvp", wait=True) as guest:
        await served.verb("wait", "kvp")
        guest.book.items[1] = {"k": evil, evil: "v"}
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as odd:
            odd.setblocking(False)
            odd.connect(path)
            odd.send(json.dumps({"hvring": 1, "open": evil + "\ud800"}).encode())
            await asyncio.get_running_loop().sock_recv(odd, 4096)
        shown = [await served.verb(*words) for words in (
            ("kvp", "get", "k", "--pool", "1"),
            ("kvp", "get", evil, "--pool", "1"),
            ("kvp", "get", evil, "--pool", "2"),
            ("kvp", "list", "--pool", "1"),
            ("status",),
            ("violations",),
        )]  # fmt: skip
        shown.append(await served.end())
    for _, out, err in shown:
        assert all(line.isprintable() for line in (out + err).split("\n"))
    assert "\\x1b]0;x\\x07\\x9b2J\\u202e\\r\\n" in shown[0][1]


async def test_an_echo_is_offered_on_request(path):
    guid = "c0ffee00-0000-4000-8000-000000000001"

    def driver() -> bytes:
        with connect(path, guid, wait=True) as channel:
            channel.send(b"Hi there")
            assert channel.wait(30)
            packet = channel.recv()
            assert packet is not None
            return packet.payload

    async with Served(path, "--echo", guid) as served:
        assert await asyncio.to_thread(driver) == b"Hi there"
        while f"{guid}  waiting  -" not in (await served.verb("status"))[1]:
            pass  # the host sees a moment later that the driver left
        assert await served.verb("toggle", guid, "off") == (0, f"{guid} is off\n", "")
        assert f"{guid}  off      -" in (await served.verb("status"))[1]
        _, out, _ = await served.end()
    assert f"vss, fcopy, {guid} at {path}" in out
    assert (await Served(path).verb("--echo", "floppy"))[0] == 2


async def test_ip_settings_are_read_and_changed(path):
    async with Served(path) as served, Guest(path, "kvp", wait=True) as guest:
        assert (await served.verb("wait", "kvp"))[0] == 0
        found = KvpIpInfo(
            4, 1, "00:15:5D:01:02:03", 1, 1, "192.0.2.7", "255.255.255.0", "192.0.2.1;", "\x1b[2J"
        )
        asked = []

        def answer(request):
            asked.append(KvpIpInfo.decode(request.body))
            return request.answer(0, found.encode())

        guest.book.kvp = answer
        code, out, _ = await served.verb("ip", "get", "00:15:5d:01:02:03")
        assert (code, "192.0.2.7" in out, "\x1b" in out) == (0, True, False)
        code, out, _ = await served.verb("ip", "get", "00:15:5d:01:02:03", "--json")
        assert json.loads(out)["gateways"] == "192.0.2.1;"
        addresses = ("--address", "192.0.2.7/255.255.255.0", "--address", "2001:db8::7/64")
        words = (*addresses, "--gateway", "192.0.2.1", "--dns", "192.0.2.53", "--dns", "2001:db8::53")
        assert (await served.verb("ip", "set", "{0}", *words))[:2] == (0, "the guest took the settings\n")
        settings = ("192.0.2.7;2001:db8::7", "255.255.255.0;/64", "192.0.2.1", "192.0.2.53;2001:db8::53")
        assert asked[-1] == KvpIpInfo(5, 1, "{0}", 3, 0, *settings)
        guest.book.kvp = lambda request: request.answer(Status.NOT_SUPPORTED)
        code, _, err = await served.verb("ip", "set", "{0}", "--dhcp")
        assert (code, "NOT_SUPPORTED" in err) == (1, True)
