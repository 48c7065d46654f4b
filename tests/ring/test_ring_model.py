# SPDX-License-Identifier: Apache-2.0
"""The fast ring against the plain-Python model: same memory, same answers, any interleaving."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hvring.errors import BufferTooSmallError, PacketTooLargeError, RingFullError
from hvring.ring import RingConsumer, RingProducer

_spec = importlib.util.spec_from_file_location("ring_model", Path(__file__).with_name("model.py"))
assert _spec is not None
assert _spec.loader is not None
model = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(model)

payloads = st.binary(max_size=300)
tids = st.integers(0, 2**64 - 1)
types = st.sampled_from([6, 11])


class TwoRings(RuleBasedStateMachine):
    """Every step is done on the fast ring and on the model; memory and results must stay equal."""

    @initialize(data=st.sampled_from([64, 256, 520, 4096]), start=st.integers(0, 511))
    def begin(self, data: int, start: int) -> None:
        at = start * 8 % data
        self.fast = bytearray(4096 + data)
        struct.pack_into("<II", self.fast, 0, at, at)
        self.slow = bytearray(self.fast)
        self.producer = RingProducer(self.fast)
        self.consumer = RingConsumer(self.fast)
        struct.pack_into("<I", self.slow, model.FEATURES, 1)
        self.model = model.Model(self.slow)

    @rule(payload=payloads, tid=tids, kind=types, flags=st.integers(0, 1))
    def send(self, payload: bytes, tid: int, kind: int, flags: int) -> None:
        want = self.model.send(payload, tid, kind, flags)
        if want is None:
            with pytest.raises(RingFullError):
                self.producer.send(payload, transaction_id=tid, packet_type=kind, flags=flags)
        else:
            assert self.producer.send(payload, transaction_id=tid, packet_type=kind, flags=flags) is want

    @rule(batch=st.lists(payloads, max_size=6), tid=st.integers(0, 1000))
    def send_many(self, batch: list[bytes], tid: int) -> None:
        sent = 0
        due = False
        for i, payload in enumerate(batch):
            result = self.model.send(payload, tid + i)
            if result is None:
                break
            sent += 1
            due |= result
        if batch and not sent and len(batch[0]) > self.producer.max_payload:
            with pytest.raises(PacketTooLargeError):
                self.producer.send_many(batch, transaction_id=tid)
        else:
            assert self.producer.send_many(batch, transaction_id=tid) == (sent, due)

    @rule(batch=st.lists(payloads, max_size=8), gap=st.integers(0, 9), tid=st.integers(0, 1000))
    def send_batch(self, batch: list[bytes], gap: int, tid: int) -> None:
        buffer, rows, results = b"", b"", []
        for i, payload in enumerate(batch):
            rows += struct.pack("<IIHHIQ", len(buffer) + gap, len(payload), 11, i, 0, tid + i)
            buffer += bytes(gap) + payload
            if None not in results:
                results.append(self.model.send(payload, tid + i, 11, i))
        sent = len(results) - results.count(None)
        if batch and not sent and len(batch[0]) > self.producer.max_payload:
            with pytest.raises(PacketTooLargeError):
                self.producer.send_batch(buffer, rows)
        else:
            assert self.producer.send_batch(buffer, rows) == (sent, True in results)

    @rule(room=st.integers(0, 900), most=st.integers(0, 6))
    def recv_batch(self, room: int, most: int) -> None:
        want: list[tuple[int, int, int, bytes]] = []
        left = room
        while len(want) < most and self.model.used() and self.model.next_length() <= left:
            packet = self.model.recv()[0]
            assert packet is not None
            want.append(packet)
            left -= len(packet[3])
        buffer, rows = bytearray(room), bytearray(24 * most)
        try:
            count = self.consumer.recv_batch(buffer, rows)
        except BufferTooSmallError:
            count = 0
        got = [
            (kind, flags, number, bytes(buffer[offset : offset + length]))
            for offset, length, kind, flags, _, number in struct.iter_unpack("<IIHHIQ", rows[: 24 * count])
        ]
        assert got == want
        self.consumer.take_signal()

    @rule(payload=payloads, tid=tids, keep=st.integers(0, 300), commit=st.booleans())
    def claim(self, payload: bytes, tid: int, keep: int, commit: bool) -> None:
        try:
            claim = self.producer.claim(len(payload), transaction_id=tid)
        except RingFullError:
            return
        claim.buffer[:] = payload
        if commit:
            keep = min(keep, len(payload))
            want = self.model.send(payload[:keep], tid)
            assert claim.commit(keep) is want
            # bytes behind a shortened claim may be left in free room: not part of any packet
            self._copy_free_room()
        else:
            claim.abort()
            self._copy_free_room()

    def _copy_free_room(self) -> None:
        write, read = struct.unpack_from("<II", self.fast)
        size = len(self.fast) - 4096
        for i in range((read - write - 1) % size + 1):
            at = 4096 + (write + i) % size
            self.slow[at] = self.fast[at]

    @rule()
    def recv(self) -> None:
        want, signal = self.model.recv()
        got = self.consumer.recv()
        assert (None if got is None else (got.type, got.flags, got.transaction_id, got.payload)) == want
        assert self.consumer.take_signal() is signal

    @rule()
    def recv_bytes(self) -> None:
        want, signal = self.model.recv()
        assert self.consumer.recv_bytes() == (None if want is None else want[3])
        assert self.consumer.take_signal() is signal

    @rule(room=st.integers(0, 400))
    def recv_into(self, room: int) -> None:
        want, _ = self.model.recv()
        buffer = bytearray(b"\xaa" * 400)
        length = self.consumer.recv_into(buffer)
        self.consumer.take_signal()
        assert (None if length is None else bytes(buffer[:length])) == (None if want is None else want[3])
        assert buffer[length or 0 :] == b"\xaa" * (400 - (length or 0))

    @rule(most=st.integers(0, 4))
    def views(self, most: int) -> None:
        seen = []
        with self.consumer.views() as views:
            for _, view in zip(range(most), views, strict=False):
                seen.append((view.type, view.flags, view.transaction_id, bytes(view.payload)))
        # what was handed out counts as read, whether or not the iterator was taken to its end
        assert seen == [self.model.recv()[0] for _ in seen]
        self.consumer.take_signal()

    @rule(value=st.integers(0, 1))
    def mask(self, value: int) -> None:
        if value:
            self.consumer.mask()
        else:
            assert self.consumer.arm() == self.model.used()
        self.model.put(model.MASK, value)

    @rule(length=st.integers(0, 300))
    def want_room(self, length: int) -> None:
        total = (16 + length + 7) // 8 * 8 + 8
        if total > self.model.size - 8:
            return
        fits = self.model.size - self.model.used() > total
        assert self.producer.want_room(length) is fits
        self.model.put(model.PENDING, 0 if fits else total)

    @invariant()
    def same_memory(self) -> None:
        if hasattr(self, "fast"):
            assert self.fast == self.slow
            assert self.producer.free == self.model.size - self.model.used()
            assert self.consumer.available == self.model.used()


TestTwoRings = TwoRings.TestCase
TestTwoRings.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
