# SPDX-License-Identifier: Apache-2.0
"""Every kind of broken rule is found, named, and survived."""

from __future__ import annotations

import asyncio
import struct

import pytest
from scripted_guest import Book, Guest, RawGuest, body, put

from hvring.errors import ReplyError
from hvring.events import EventKind
from hvring.host import GuestStatusError, HostError, NoAnswerError, NotReadyError, Timing, VirtualHost
from hvring.ic import HEADER, NegotiateReply, Request, Version

GRAVE = [
    (put(0, b"\2\0\0\0"), "pipe packet type 2"),
    (put(4, (4096).to_bytes(4, "little")), "pipe size 4096 in a payload of 2608"),
    (put(4, (19).to_bytes(4, "little")), "pipe size 19 does not cover the IC header"),
    (put(18, (2600).to_bytes(2, "little")), "body size 2600 in a pipe message of 2600"),
    (put(12, b"\3\0"), "message type 3, the request had 2"),
    (put(24, b"\xee"), "IC transaction id 238, the request had 2"),
    (put(25, b"\3"), "flags 0x3 lack TRANSACTION or RESPONSE"),
    (put(25, b"\4"), "flags 0x4 lack TRANSACTION or RESPONSE"),
    (lambda payload: payload[:24], "24 bytes cannot hold"),
    (lambda payload: b"", "0 bytes cannot hold"),
]

LIGHT = [
    (put(25, b"\7"), "flags 0x7, an answer has 0x5"),
    (put(8, b"\1\0\0\0"), "framework version 1.0, the request had 3.0"),
    (put(14, b"\5\0\0\0"), "message version 5.0, the request had 4.0"),
]

BROKEN_ITEMS = [
    (body(12, (511).to_bytes(4, "little")), "whole number of UTF-16 units"),
    (body(12, (6).to_bytes(4, "little")), "no NUL"),
    (body(12, (514).to_bytes(4, "little")), "key of 514 bytes"),
    (body(16, (2050).to_bytes(4, "little")), "value of 2050 bytes"),
    (body(16, (6).to_bytes(4, "little")), "no NUL"),
    (body(8, (4).to_bytes(4, "little")), "number of type 4 in 12 bytes"),
    (body(8, (11).to_bytes(4, "little")), "number of type 11 in 12 bytes"),
    (body(8, (3).to_bytes(4, "little")), "value type 3 is not known"),
    (body(20, b"\0\xd8"), "half a surrogate pair"),
    (lambda payload: put(18, b"\x64\0")(payload), "KVP item of 100 bytes"),
]


@pytest.mark.parametrize(("twist", "complaint"), GRAVE)
async def test_a_reply_that_no_host_can_use_fails_the_request(path, twist, complaint):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        guest.twist = twist
        with pytest.raises(ReplyError, match=f"kvp: GET 'k': .*{complaint}"):
            await host.kvp.get("k")
        assert len(host.violations) == 1
        assert (host.violations[0].service, host.violations[0].request) == ("kvp", "GET 'k'")
        guest.twist = None
        await host.kvp.set("k", "v")
        assert await host.kvp.get("k") == "v"
        assert host.violation_count == 1


@pytest.mark.parametrize(("twist", "complaint"), LIGHT)
async def test_a_reply_that_hosts_put_up_with_is_listed_and_used(path, twist, complaint):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        guest.twist = twist
        await host.kvp.set("k", "v")
        assert host.violations == [f"kvp: SET 'k': {complaint}"]


async def test_an_unknown_status_is_listed_and_raised(path):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        guest.twist = put(20, b"\x39\5\0\0")
        with pytest.raises(GuestStatusError, match="status 0x00000539"):
            await host.kvp.get("k")
        assert host.violations == ["kvp: GET 'k': status 0x00000539 is not known"]


@pytest.mark.parametrize(("twist", "complaint"), BROKEN_ITEMS)
async def test_a_broken_key_or_value_is_found(path, twist, complaint):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        guest.book.items[1] = {"key": "value"}
        guest.twist = twist
        with pytest.raises(ReplyError, match=complaint):
            await host.kvp.enumerate(1, 0)
        assert len(host.violations) == 1
        assert host.violations[0].request == "ENUMERATE pool 1 index 0"
        guest.twist = None
        assert await host.kvp.enumerate(1, 0) == ("key", "value")


@pytest.mark.parametrize(("bound", "value"), [("MAX_ITEMS", 5), ("MAX_LETTERS", 14)])
async def test_an_enumeration_without_end_is_ended(path, monkeypatch, bound, value):
    monkeypatch.setattr(f"hvring.host.kvp.{bound}", value)
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        guest.book.items[1] = {str(n): "x" for n in range(50)}
        await host.wait_ready("kvp")
        with pytest.raises(ReplyError, match="does not end"):
            await host.kvp.list(1)
        assert host.violations == [
            f"kvp: ENUMERATE pool 1: no end after {5 if bound == 'MAX_ITEMS' else 7} items"
        ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"transaction_id": 2**64 - 1}, "descriptor transaction id 0xffffffffffffffff, the request had 0x2"),
        ({"flags": 1}, "descriptor flags 0x1, an answer has 0"),
    ],
)
async def test_a_wrong_descriptor_is_listed(path, change, complaint):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        guest.reply = lambda packet, payload: guest.channel.send(
            payload, **({"transaction_id": packet.transaction_id} | change)
        )
        await host.kvp.set("k", "v")
        assert [v.what for v in host.violations] == [complaint]


async def test_a_packet_of_another_type_is_listed_and_passed_over(path):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")

        def reply(packet, payload):
            guest.channel.send(payload, transaction_id=packet.transaction_id, packet_type=11)
            guest.channel.send(payload, transaction_id=packet.transaction_id)

        guest.reply = reply
        await host.kvp.set("k", "v")
        assert host.violations == ["kvp: packet: packet type 11, integration services use 6"]


async def test_answers_that_nobody_asked_for_are_listed(path):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")

        def twice(packet, payload):
            guest.channel.send(payload, transaction_id=packet.transaction_id)
            guest.channel.send(payload, transaction_id=packet.transaction_id)

        guest.reply = twice
        await host.kvp.set("k", "v")
        del guest.reply
        await host.kvp.get("k")
        assert host.violations == ["kvp: packet: an answer of 2608 bytes that no request waits for"]


async def test_silence_and_a_late_answer_are_listed_and_the_next_request_works(path):
    async with VirtualHost(path, timing=Timing(answer=0.4)) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        guest.hold = []
        with pytest.raises(NoAnswerError, match="read the request and did not answer"):
            await host.kvp.get("a")
        guest.release()
        await host.kvp.set("b", "v")
        assert await host.kvp.get("b") == "v"
        assert [v.request for v in host.violations] == ["GET 'a'", "GET 'a'"]
        assert [v.what.split(",")[0] for v in host.violations] == ["no answer within 0.4 s", "late answer"]


async def test_a_guest_that_does_not_read_is_told_apart_from_one_that_does_not_answer(path):
    async with VirtualHost(path, timing=Timing(answer=0.4)) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        asyncio.get_running_loop().remove_reader(guest.channel.fileno())
        with pytest.raises(NoAnswerError, match="did not even read the request"):
            await host.kvp.get("a")


async def test_late_answers_with_wrong_descriptor_ids_are_still_told_from_the_right_one(path):
    async with VirtualHost(path, timing=Timing(answer=0.4)) as host, Guest(path, "kvp") as guest:
        guest.reply = lambda packet, payload: guest.channel.send(payload, transaction_id=2**64 - 1)
        await host.wait_ready("kvp")
        await host.kvp.set("b", "v")
        guest.hold = []
        with pytest.raises(NoAnswerError):
            await host.kvp.get("a")
        guest.release()
        assert await host.kvp.get("b") == "v"
        assert sum("late answer" in v for v in host.violations) == 1


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda r: r.answer(0, b"\0\0\0\0"), "agreed to 0 framework and 0 message versions"),
        (
            lambda r: r.answer(0, NegotiateReply(Version(3, 0), Version(9, 9)).encode()),
            "not offered: 3.0, 9.9",
        ),
        (
            lambda r: r.answer(0, NegotiateReply(Version(2, 0), Version(4, 0)).encode()),
            "not offered: 2.0, 4.0",
        ),
        (lambda r: r.answer(0, None, 15), "a negotiation answer of 15 bytes"),
        (lambda r: r.answer(0)[:HEADER], "pipe size 48 in a payload of 32"),
    ],
)
async def test_a_failed_negotiation_is_listed_and_can_be_repeated(path, answer, complaint):
    book = Book("kvp")
    real, book.answer = book.answer, lambda payload: answer(Request.parse(payload))
    events = []
    async with VirtualHost(path, on_event=events.append) as host, Guest(path, "kvp", book=book):
        while not any(e.kind is EventKind.FAILED for e in events):
            await asyncio.sleep(0)
        assert len(host.violations) == 1
        assert complaint in host.violations[0]
        assert host.status()["services"]["kvp"]["state"] == "failed"
        with pytest.raises(NotReadyError, match="negotiation"):
            await host.kvp.get("k")
        book.answer = real
        assert (await host.renegotiate("kvp")).version == Version(4, 0)
        assert await host.kvp.get("k") is None


async def test_a_negotiation_that_agrees_with_a_failure_status_is_listed(path):
    book = Book("kvp")
    real = book.answer
    book.answer = lambda payload: put(20, b"\5\x40\0\x80")(real(payload))
    async with VirtualHost(path) as host, Guest(path, "kvp", book=book):
        await host.wait_ready("kvp")
        assert host.violations == ["kvp: negotiation: status 0x80004005 in an answer that agrees"]


@pytest.mark.parametrize(
    ("twist", "complaint"),
    [
        (body(0, b"\0" * 8), "sequence 0 in the answer to"),
        (body(8, b"\x09"), "application state 9 is not known"),
    ],
)
async def test_a_wrong_heartbeat_is_listed(path, twist, complaint):
    async with VirtualHost(path) as host, Guest(path, "heartbeat") as guest:
        await host.heartbeat.wait_contact()
        guest.twist = twist
        await host.heartbeat.beat()
        assert len(host.violations) == 1
        assert complaint in host.violations[0]


# ------------------------------------------------------------------------------------------ signals and rings


async def answer_one(guest: RawGuest, host: VirtualHost, book: Book, reply) -> None:
    """The host asks, the guest lets ``reply(payload, transaction_id)`` send the right answer."""
    asked = asyncio.create_task(host.kvp.set("k", "v"))
    packet = await guest.next()
    reply(book.answer(packet.payload), packet.transaction_id)
    await asked


async def test_signals_by_the_rule_are_not_held_against_the_guest(path):
    async with VirtualHost(path) as host, RawGuest(path, "kvp") as guest:
        await guest.negotiate()
        await host.wait_ready("kvp")
        book = Book("kvp")
        for _ in range(50):
            await answer_one(guest, host, book, guest.send)
        assert host.violations == []


async def test_a_second_signal_for_one_answer_is_needless(path):
    async with VirtualHost(path) as host, RawGuest(path, "kvp") as guest:
        await guest.negotiate()
        await host.wait_ready("kvp")

        def twice(payload, transaction_id):
            guest.send(payload, transaction_id)
            guest.signal()

        await answer_one(guest, host, Book("kvp"), twice)
        await answer_one(guest, host, Book("kvp"), guest.send)
        assert len(host.violations) == 1
        assert "needless signal, 1 more" in host.violations[0]


async def test_a_signal_in_two_parts_is_counted_in_whole(path):
    async with VirtualHost(path) as host, RawGuest(path, "kvp") as guest:
        await guest.negotiate()
        await host.wait_ready("kvp")

        def five(payload, transaction_id):
            guest.tx.send(payload, transaction_id=transaction_id)
            guest.signal(5)

        await answer_one(guest, host, Book("kvp"), five)
        assert [v.what for v in host.violations] == ["needless signal, 4 more than the rules allow"]


async def test_a_signal_for_nothing_is_needless(path):
    events = []
    async with (
        VirtualHost(path, on_event=events.append) as host,
        RawGuest(path, "kvp") as guest,
    ):
        await guest.negotiate()
        await host.wait_ready("kvp")
        guest.signal()
        while not host.violations:
            await asyncio.sleep(0)
        assert host.violations == ["kvp: idle: needless signal, 1 more than the rules allow"]
        assert events[-1].kind is EventKind.VIOLATION


async def test_a_signal_that_never_comes_is_listed_and_the_answer_taken(path):
    async with (
        VirtualHost(path, timing=Timing(answer=0.4)) as host,
        RawGuest(path, "kvp") as guest,
    ):
        await guest.negotiate()
        await host.wait_ready("kvp")

        def silently(payload, transaction_id):
            assert guest.tx.send(payload, transaction_id=transaction_id)

        await answer_one(guest, host, Book("kvp"), silently)
        assert [v.what for v in host.violations] == [
            "the answer is in the ring but the guest did not signal it"
        ]


@pytest.mark.parametrize(("offset", "word"), [(0, 3), (0, 2**31), (0, 8)])
async def test_a_corrupted_ring_ends_the_channel_and_not_the_host(path, offset, word):
    async with VirtualHost(path) as host:
        async with RawGuest(path, "kvp") as guest:
            await guest.negotiate()
            await host.wait_ready("kvp")
            struct.pack_into("<I", guest.memory, offset, word)
            guest.signal()
            await host.wait_detached("kvp")
            assert len(host.violations) == 1
            assert host.violations[0].request == "ring"
            assert guest.connection.recv(10) == b""
        async with Guest(path, "kvp"):
            await host.wait_ready("kvp")
            await host.kvp.set("k", "v")


async def test_a_corrupted_read_index_is_found_when_sending(path):
    async with VirtualHost(path) as host, RawGuest(path, "fcopy") as guest:
        await guest.negotiate()
        await host.wait_ready("fcopy")
        ring = len(guest.memory) // 2
        struct.pack_into("<I", guest.memory, ring + 4, 4)
        async with host.faults("fcopy") as raw:
            raw.send(bytes(6000))  # goes by what was known of the index
            raw.send(bytes(6000))
            with pytest.raises(HostError, match="corrupted the ring"):
                raw.send(bytes(6000))  # must look
        await host.wait_detached("fcopy")
        assert "read_index" in host.violations[0]


async def test_the_list_of_violations_is_bounded_and_the_count_is_not(path, monkeypatch):
    monkeypatch.setattr("hvring.host.reports.MAX_LISTED", 3)
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        for _ in range(10):
            guest.channel.send(b"nonsense")
        while host.violation_count < 10:
            await asyncio.sleep(0)
        assert len(host.violations) == 3
