# SPDX-License-Identifier: Apache-2.0
"""The administrator's verbs against a guest that answers by the book."""

from __future__ import annotations

import asyncio
import io
import os
import time

import pytest
from scripted_guest import Book, Guest

from hvring.events import EventKind
from hvring.host import GuestStatusError, HostError, NotReadyError, SourceChangedError, Timing, VirtualHost
from hvring.host.heartbeat import Contact
from hvring.ic import ApplicationState, ShutdownRequest, Status, TimeSampleV3, TimeSampleV4, Version
from hvring.ic.fcopy import CHUNK, FcopyFlag, FcopyOperation, StartCopy
from hvring.ic.kvp_ip import KvpIpInfo
from hvring.ic.timesync import to_unix_ns
from hvring.ic.vss import VssOperation

QUICK = Timing(heartbeat_interval=0.01, timesync_interval=0.01)


async def test_all_six_services_negotiate_what_real_hosts_and_linux_have_in_common(path):
    async with VirtualHost(path, timing=QUICK) as host:
        guests = [Guest(path, name) for name in host.status()["services"]]
        for guest in guests:
            await guest.__aenter__()
        await host.wait_ready()
        versions = {name: s["version"] for name, s in host.status()["services"].items()}
        assert versions == {
            "shutdown": "3.2",
            "timesync": "4.0",
            "heartbeat": "3.0",
            "kvp": "4.0",
            "vss": "5.0",
            "fcopy": "1.1",
        }
        await host.heartbeat.wait_contact()
        for guest in guests:
            await guest.__aexit__()
        assert host.violations == []


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ({}, 0),
        ({"force": True}, 1),
        ({"restart": True}, 2),
        ({"restart": True, "force": True}, 3),
        ({"hibernate": True}, 4),
    ],
)
async def test_shutdown_sends_flags_reason_timeout_and_text(path, arguments, flags):
    async with VirtualHost(path) as host, Guest(path, "shutdown") as guest:
        await host.wait_ready("shutdown")
        await host.shutdown.request(reason=0x80020002, timeout=90, text="Wartung", **arguments)
        sent = ShutdownRequest.decode(guest.book.requests[0].body)
        assert (sent.reason, sent.timeout, sent.flags, sent.text) == (0x80020002, 90, flags, "Wartung")
        assert guest.book.requests[0].version == Version(3, 2)
        assert host.violations == []


async def test_shutdown_reports_a_refusal(path):
    async with VirtualHost(path) as host, Guest(path, "shutdown") as guest:
        guest.book.status[0] = Status.FAIL
        await host.wait_ready("shutdown")
        with pytest.raises(GuestStatusError, match=r"hibernate with FAIL \(0x80004005\)") as caught:
            await host.shutdown.request(hibernate=True)
        assert caught.value.status == Status.FAIL
        assert host.violations == []


async def test_restart_is_not_sent_to_a_guest_whose_version_lacks_it(path):
    book = Book("shutdown", [Version(3, 0)])
    async with VirtualHost(path) as host, Guest(path, "shutdown", book=book):
        await host.wait_ready("shutdown")
        with pytest.raises(HostError, match=r"restart needs version 3\.1, the guest agreed to 3\.0"):
            await host.shutdown.request(restart=True)
        assert book.requests == []


async def test_time_is_synced_after_negotiation_and_then_sampled(path):
    async with VirtualHost(path, timing=QUICK) as host, Guest(path, "timesync") as guest:
        while len(guest.book.requests) < 3:
            await asyncio.sleep(0)
        samples = [TimeSampleV4.decode(r.body) for r in guest.book.requests]
        assert [s.flags for s in samples[:3]] == [1, 2, 2]
        assert abs(to_unix_ns(samples[0].parent) - time.time_ns()) < 3600 * 10**9
        assert samples[0].reference < samples[1].reference
        assert host.violations == []


async def test_time_is_told_in_the_old_layout_to_an_old_guest(path):
    book = Book("timesync", [Version(3, 0)])
    async with VirtualHost(path) as host, Guest(path, "timesync", book=book):
        await host.wait_ready("timesync")
        host.timesync.skew_ns = 10**18
        exchange = await host.timesync.sync()
        sample = TimeSampleV3.decode(book.requests[-1].body)
        assert sample.flags == 1
        assert to_unix_ns(sample.parent) == exchange.host_time_ns // 100 * 100
        assert exchange.host_time_ns > time.time_ns() + 10**17


async def test_heartbeats_are_counted_up_by_both_sides(path):
    async with VirtualHost(path, timing=QUICK) as host, Guest(path, "heartbeat") as guest:
        status = await host.heartbeat.wait_contact()
        assert status.application is ApplicationState.HEALTHY
        while len(guest.book.requests) < 3:
            await asyncio.sleep(0)
        assert [int.from_bytes(r.body[:8], "little") for r in guest.book.requests[:3]] == [0, 2, 4]
        assert host.violations == []


async def test_contact_is_lost_after_two_misses_and_found_again(path):
    events = []
    timing = Timing(heartbeat_interval=0.2, heartbeat_latency=0.2)
    async with (
        VirtualHost(path, timing=timing, on_event=events.append) as host,
        Guest(path, "heartbeat") as guest,
    ):
        await host.heartbeat.wait_contact()
        guest.hold = []
        assert (await host.heartbeat.wait_contact(Contact.LOST)).misses == 2
        guest.book.application = ApplicationState.CRITICAL
        guest.release()
        await host.heartbeat.wait_contact()
        told = [e.detail for e in events if e.kind is EventKind.CONTACT]
        assert told == [
            "ok, applications healthy",
            "lost contact, applications healthy",
            "ok, applications critical",
        ]
        assert host.violations == []
    assert host.heartbeat.status.contact is Contact.NONE


async def test_kvp_get_set_remove_list(path):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        assert await host.kvp.get("Schlüssel") is None
        await host.kvp.set("Schlüssel", "grün 🟢", pool=1)
        await host.kvp.set("Zahl", 2**32 - 1, pool=1)
        assert guest.book.items[1] == {"Schlüssel": "grün 🟢", "Zahl": 2**32 - 1}
        assert await host.kvp.get("Schlüssel", pool=1) == "grün 🟢"
        assert await host.kvp.get("Zahl", pool=1) == 2**32 - 1
        assert await host.kvp.list(pool=1) == [("Schlüssel", "grün 🟢"), ("Zahl", 2**32 - 1)]
        assert await host.kvp.remove("Zahl", pool=1)
        assert not await host.kvp.remove("Zahl", pool=1)
        assert await host.kvp.automatic() == guest.book.items[2]
        assert await host.kvp.enumerate(2, 1) == ("FullyQualifiedDomainName", "l2guest")
        assert host.violations == []


async def test_kvp_limits_are_those_of_the_fields(path):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        await host.kvp.set("k" * 255, "v" * 1023)
        assert guest.book.items[0] == {"k" * 255: "v" * 1023}
        for key, value in (("k" * 256, "v"), ("k", "v" * 1024), ("a\0b", "v"), ("k", -1), ("k", 2**64)):
            with pytest.raises(ValueError, match=r"too long|NUL|does not go into"):
                await host.kvp.set(key, value)
        assert len(guest.book.requests) == 1


async def test_a_set_that_the_guest_cannot_store_is_an_error(path):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        guest.book.status[1] = Status.NO_MORE_ITEMS
        with pytest.raises(GuestStatusError, match="SET 'k' with NO_MORE_ITEMS"):
            await host.kvp.set("k", "v")
        guest.book.status[1] = Status.FAIL
        with pytest.raises(GuestStatusError, match="FAIL"):
            await host.kvp.set("k", "v")


async def test_ip_settings_in_string_form(path):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        found = KvpIpInfo(4, 1, "00:15:5D:01:02:03", 1, 0, "192.0.2.7", "255.255.255.0", "192.0.2.1;", "")
        guest.book.kvp = lambda request: request.answer(0, found.encode())
        assert await host.kvp.get_ip("00:15:5d:01:02:03") == found
        guest.book.kvp = lambda request: request.answer(Status.NOT_FOUND)
        with pytest.raises(GuestStatusError, match="NOT_FOUND"):
            await host.kvp.set_ip(KvpIpInfo(5, 1, "{0}"))
        assert host.violations == []


async def test_a_backup_runs_in_the_order_of_real_hosts(path):
    async with VirtualHost(path) as host, Guest(path, "vss") as guest:
        await host.wait_ready("vss")
        seen = []

        async def during():
            seen.append((host.vss.frozen, list(guest.book.operations)))

        report = await host.vss.backup(during)
        assert seen == [(True, [VssOperation.HOT_BACKUP, VssOperation.GET_DM_INFO, VssOperation.FREEZE])]
        assert guest.book.operations[3:] == [VssOperation.THAW, VssOperation.BACKUP_COMPLETE]
        assert (report.flags, report.device_flags) == (5, 0)
        assert not host.vss.frozen
        assert host.violations == []


async def test_a_guest_that_cannot_be_backed_up_is_not_frozen(path):
    async with VirtualHost(path) as host, Guest(path, "vss") as guest:
        guest.book.status[VssOperation.HOT_BACKUP] = Status.FAIL
        await host.wait_ready("vss")
        with pytest.raises(GuestStatusError, match="HOT_BACKUP with FAIL"):
            await host.vss.backup()
        assert guest.book.operations == [VssOperation.HOT_BACKUP]


async def test_a_failed_freeze_is_thawed(path):
    async with VirtualHost(path) as host, Guest(path, "vss") as guest:
        guest.book.status[VssOperation.FREEZE] = Status.FAIL
        await host.wait_ready("vss")
        with pytest.raises(GuestStatusError, match="FREEZE with FAIL"):
            await host.vss.backup()
        assert guest.book.operations[-1] == VssOperation.THAW


async def test_an_error_during_the_backup_is_raised_after_the_thaw(path):
    async with VirtualHost(path) as host, Guest(path, "vss") as guest:
        await host.wait_ready("vss")

        async def during():
            raise RuntimeError("disk on fire")

        with pytest.raises(RuntimeError, match="disk on fire"):
            await host.vss.backup(during)
        assert guest.book.operations[-2:] == [VssOperation.FREEZE, VssOperation.THAW]


@pytest.mark.parametrize("when", ["during FREEZE", "while frozen", "during THAW"])
async def test_a_cancelled_backup_still_thaws(path, when):
    async with VirtualHost(path) as host, Guest(path, "vss") as guest:
        await host.wait_ready("vss")
        frozen = asyncio.Event()

        async def during():
            frozen.set()
            if when == "while frozen":
                await asyncio.Event().wait()
            guest.hold = []

        if when == "during FREEZE":
            handle = guest.handle

            def hold_freeze(packet):
                if (
                    packet.payload[28] == VssOperation.FREEZE
                    and guest.hold is None
                    and not guest.held.is_set()
                ):
                    guest.hold = [packet]
                    guest.held.set()
                else:
                    handle(packet)

            guest.handle = hold_freeze
        backup = asyncio.create_task(host.vss.backup(during))
        await (frozen if when == "while frozen" else guest.held).wait()
        backup.cancel()
        if when != "while frozen":
            for _ in range(10):
                await asyncio.sleep(0)
            assert not backup.done()
            assert VssOperation.THAW not in guest.book.operations
            packets, guest.hold = guest.hold, None
            for packet in packets:
                guest.handle(packet)
        with pytest.raises(asyncio.CancelledError):
            await backup
        assert guest.book.operations[-1] == VssOperation.THAW
        assert guest.book.operations.count(VssOperation.FREEZE) == 1
        assert not host.vss.frozen
        assert host.violations == []


async def test_a_host_that_ends_thaws_the_guest_first(path):
    async with VirtualHost(path) as host, Guest(path, "vss") as guest:
        await host.wait_ready("vss")
        await host.vss.freeze()
        await host.close()
        await guest.ended.wait()
        assert guest.book.operations == [VssOperation.FREEZE, VssOperation.THAW]


async def test_a_file_arrives_whole_and_in_chunks(path, tmp_path):
    content = bytes(range(256)) * 100  # 4 chunks and a bit
    source = tmp_path / "Bericht 🟢.txt"
    source.write_bytes(content)
    progress = []
    async with VirtualHost(path) as host, Guest(path, "fcopy") as guest:
        await host.wait_ready("fcopy")
        report = await host.fcopy.copy(
            source, "/srv", overwrite=True, create_path=True, progress=lambda *p: progress.append(p)
        )
        assert report.size == len(content)
        assert guest.book.files["/srv/Bericht 🟢.txt"] == content
        assert guest.book.completed == ["/srv/Bericht 🟢.txt"]
        start = StartCopy.decode(guest.book.requests[0].body)
        assert (start.flags, start.size) == (FcopyFlag.OVERWRITE | FcopyFlag.CREATE_PATH, len(content))
        assert progress == [(min(n * CHUNK, 25600), 25600) for n in range(1, 6)]
        assert host.violations == []


@pytest.mark.parametrize("change", [-1, 1, -30_000, 1_000_000])
async def test_a_file_that_changes_its_size_while_it_is_copied_is_not_copied(path, tmp_path, change):
    size = 1_000_000
    source = tmp_path / "growing.log"
    source.write_bytes(bytes(size))

    def progress(sent, _):
        if sent == CHUNK:
            os.truncate(source, size + change)

    async with VirtualHost(path) as host, Guest(path, "fcopy") as guest:
        await host.wait_ready("fcopy")
        with pytest.raises(SourceChangedError, match="1000000"):
            await host.fcopy.copy(source, "/srv", progress=progress)
        assert guest.book.operations[-1] == FcopyOperation.CANCEL
        assert guest.book.files == {}
        for announced in (5, 7):
            with pytest.raises(SourceChangedError):
                await host.fcopy.copy(io.BytesIO(b"ababab"), "/srv", name="read", size=announced)
        await host.fcopy.copy(io.BytesIO(b"ababab"), "/srv", name="read")
        assert guest.book.files == {"/srv/read": b"ababab"}


async def test_a_source_that_takes_its_time_to_open_holds_up_nobody_else(path, tmp_path):
    os.mkfifo(tmp_path / "slow")
    async with VirtualHost(path) as host, Guest(path, "fcopy"), Guest(path, "timesync"):
        await host.wait_ready("fcopy", "timesync")
        copy = asyncio.create_task(host.fcopy.copy(tmp_path / "slow", "/srv"))
        for _ in range(3):
            await host.timesync.sample()
        with await asyncio.to_thread(open, tmp_path / "slow", "wb") as writer:
            writer.write(b"here it is")
        assert (await copy).size == 10


async def test_bytes_and_readers_can_be_copied_too(path):
    class Reader:
        left = 3

        def read(self, size):
            self.left -= 1
            return b"ab" if self.left >= 0 else b""

    async with VirtualHost(path) as host, Guest(path, "fcopy") as guest:
        await host.wait_ready("fcopy")
        await host.fcopy.copy(b"", "/srv", name="empty")
        await host.fcopy.copy(Reader(), "/srv", name="read", size=6)
        assert guest.book.files == {"/srv/empty": b"", "/srv/read": b"ababab"}
        with pytest.raises(ValueError, match="needs a name"):
            await host.fcopy.copy(b"x", "/srv")


@pytest.mark.parametrize(
    ("operation", "status", "cancelled"),
    [
        (FcopyOperation.START, Status.ALREADY_EXISTS, False),
        (FcopyOperation.WRITE, Status.DISK_FULL, True),
        (FcopyOperation.COMPLETE, Status.FAIL, True),
    ],
)
async def test_a_failed_copy_is_cancelled_and_says_why(path, operation, status, cancelled):
    async with VirtualHost(path) as host, Guest(path, "fcopy") as guest:
        guest.book.status[operation] = status
        await host.wait_ready("fcopy")
        with pytest.raises(GuestStatusError, match=f"{operation.name}.* with {status.name}"):
            await host.fcopy.copy(b"x" * 10000, "/srv", name="f")
        assert (guest.book.operations[-1] == FcopyOperation.CANCEL) is cancelled
        assert guest.book.files == {}


async def test_a_cancelled_copy_removes_the_partial_file(path):
    async with VirtualHost(path) as host, Guest(path, "fcopy") as guest:
        await host.wait_ready("fcopy")

        def progress(sent, size):
            copy.cancel()

        copy = asyncio.create_task(host.fcopy.copy(b"x" * 100_000, "/srv", name="f", progress=progress))
        with pytest.raises(asyncio.CancelledError):
            await copy
        assert guest.book.operations[0] == FcopyOperation.START
        assert guest.book.operations[-1] == FcopyOperation.CANCEL
        assert FcopyOperation.COMPLETE not in guest.book.operations
        assert guest.book.files == {}
        await host.fcopy.copy(b"y", "/srv", name="g")
        assert guest.book.files == {"/srv/g": b"y"}
        assert host.violations == []


async def test_verbs_without_a_guest_say_how_to_get_one(path):
    async with VirtualHost(path) as host:
        for verb in (
            host.shutdown.request(),
            host.timesync.sync(),
            host.heartbeat.beat(),
            host.kvp.get("k"),
            host.vss.backup(),
            host.fcopy.copy(b"", "/", name="x"),
            host.renegotiate("kvp"),
        ):
            with pytest.raises(NotReadyError, match="no guest is attached"):
                await verb


async def test_a_request_that_is_given_up_does_not_confuse_the_next(path):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        await host.kvp.set("b", "right")
        guest.hold = []
        first = asyncio.create_task(host.kvp.get("a"))
        await guest.held.wait()
        first.cancel()
        second = asyncio.create_task(host.kvp.get("b"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(guest.hold) == 1, "the second request waits until the first is answered"
        guest.release()
        assert await second == "right"
        assert host.violations == []


async def test_the_measure_counts_what_was_exchanged(path):
    async with VirtualHost(path) as host, Guest(path, "kvp"):
        await host.wait_ready("kvp")
        before = host.latency["kvp"].exchanges
        for n in range(10):
            await host.kvp.set(f"k{n}", "v")
        measure = host.latency["kvp"]
        assert measure.exchanges == before + 10
        assert measure.bytes_sent >= 10 * 2608
        assert 0 < measure.median <= measure.p99


async def test_a_guest_that_refuses_the_time_is_told_once_and_anew_after_it_took_it(path):
    events = []
    async with (
        VirtualHost(path, timing=QUICK, on_event=events.append) as host,
        Guest(path, "timesync") as guest,
    ):
        guest.book.status[0] = Status.FAIL
        while len(guest.book.requests) < 5:
            await asyncio.sleep(0.001)
        del guest.book.status[0]
        while not host.timesync.exchanges:
            await asyncio.sleep(0.001)
        guest.book.status[0] = Status.FAIL
        asked = len(guest.book.requests)
        while len(guest.book.requests) < asked + 5:
            await asyncio.sleep(0.001)
    failures = [e.detail for e in events if e.kind is EventKind.FAILED]
    assert failures == [
        "telling the time: timesync: the guest answered SYNC with FAIL (0x80004005)",
        "telling the time: timesync: the guest answered SAMPLE with FAIL (0x80004005)",
    ]
