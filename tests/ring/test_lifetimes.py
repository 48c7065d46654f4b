# SPDX-License-Identifier: Apache-2.0
"""Objects that are used before they are made, after they are over, or for longer than the memory they show."""

from __future__ import annotations

import copy
import gc
import mmap
import os
import pickle
import subprocess
import sys

import pytest
from hvring.channel._sleeper import Sleeper

import hvring.channel
import hvring.ring
from hvring.channel import Channel, EventfdDoorbell, MonitorDoorbell, UioDoorbell
from hvring.channel._doorbell import Doorbell
from hvring.channel._spinner import Spinner
from hvring.errors import HvringError
from hvring.ring import (
    Claim,
    DoubleMapping,
    Packet,
    PacketView,
    RingConsumer,
    RingProducer,
    ViewIterator,
)
from hvring.ring._ring import Span

KINDS = [
    Channel,
    Claim,
    Doorbell,
    DoubleMapping,
    EventfdDoorbell,
    MonitorDoorbell,
    Packet,
    PacketView,
    RingConsumer,
    RingProducer,
    Sleeper,
    Span,
    Spinner,
    UioDoorbell,
    ViewIterator,
]
ALLOWED = (HvringError, TypeError, ValueError, BufferError, OSError, StopIteration, AttributeError)

USE_ALL = """if 1:
    import faulthandler, sys
    faulthandler.enable()
    from test_lifetimes import ALLOWED, KINDS, use_all
    use_all(next(kind for kind in KINDS if kind.__name__ == sys.argv[1]))
    print("whole")
"""


def use_all(kind: type) -> None:
    """Everything public of an instance that was made without its arguments, if there is one."""
    try:
        one = kind.__new__(kind)
    except TypeError:
        return
    for name in dir(kind):
        if name in ("__class__", "__new__", "__init_subclass__", "__subclasshook__", "__getattribute__"):
            continue
        for given in ((), (1,), (b"x",), (1, 1.0, 1), (None, None, None)):
            try:
                member = getattr(one, name)
                if callable(member):
                    member(*given)
            except ALLOWED:
                pass
    for use in (memoryview, bytes, len, iter, list, repr, lambda x: x == copy.copy(x), pickle.dumps):
        try:
            use(one)
        except ALLOWED:
            pass
    del one
    gc.collect()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_made_without_arguments_ends_no_process(kind: type) -> None:
    done = subprocess.run(
        [sys.executable, "-c", USE_ALL, kind.__name__],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])},
    )
    assert done.stdout == "whole\n", done.stderr


@pytest.mark.parametrize("kind", [Claim, PacketView, ViewIterator])
def test_what_methods_return_is_made_by_nobody_else(kind: type) -> None:
    for make in (kind, lambda: kind.__new__(kind), lambda: object.__new__(kind)):
        with pytest.raises(TypeError):
            make()


def test_all_extension_classes_are_looked_at() -> None:
    public = {
        one
        for module in (hvring.ring, hvring.channel)
        for one in vars(module).values()
        if isinstance(one, type)
    }
    assert public <= set(KINDS)


def test_a_second_initialisation_changes_nothing() -> None:
    memory = mmap.mmap(-1, 4 * 8192)
    producer, consumer = RingProducer(memory, 0, 8192), RingConsumer(memory, 0, 8192)
    doorbell = EventfdDoorbell(os.eventfd(0), os.eventfd(0))
    channel = Channel(memory, ring_size=8192, tx_offset=8192, rx_offset=16384, doorbell=doorbell)
    other = mmap.mmap(-1, 4 * 8192)
    producer.__init__(other, 0, 8192)
    consumer.__init__(other, 0, 8192)
    channel.__init__(other, ring_size=8192, tx_offset=0, rx_offset=8192, doorbell=doorbell)
    producer.send(b"the first memory")
    assert consumer.recv_bytes() == b"the first memory"
    channel.send(b"x")
    assert memory[8192:8196] != bytes(4)
    assert other[:] == bytes(len(other))
    channel.close()


def wrapped_view() -> tuple[bytearray, RingProducer, RingConsumer, ViewIterator, PacketView]:
    """A view of a packet whose payload wraps, so that what it shows is a copy."""
    memory = bytearray(4096 + 4096)
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    for _ in range(3):
        producer.send(bytes(1016))
        consumer.recv()
    producer.send(b"A" * 1016)
    views = consumer.views()
    return memory, producer, consumer, views, next(views)


def whole_view() -> tuple[bytearray, RingProducer, RingConsumer, ViewIterator, PacketView]:
    memory = bytearray(4096 + 4096)
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    producer.send(b"A" * 1016)
    views = consumer.views()
    return memory, producer, consumer, views, next(views)


@pytest.mark.parametrize("made", [wrapped_view, whole_view])
def test_what_a_view_kept_is_of_no_use_once_it_is_over(made) -> None:
    _memory, producer, _, views, view = made()
    span = view.payload.obj
    assert memoryview(span).tobytes() == b"A" * 1016
    assert list(views) == []
    junk = [b"B" * 1016 for _ in range(200)]
    producer.send(b"C" * 1016)
    for kept in (span, view):
        with pytest.raises(BufferError):
            memoryview(kept)
    assert junk


@pytest.mark.parametrize("made", [wrapped_view, whole_view])
def test_what_looks_into_a_view_keeps_it_from_being_over(made) -> None:
    _, _, consumer, views, view = made()
    held = memoryview(view.payload.obj)
    with pytest.raises(BufferError):
        next(views)
    with pytest.raises(BufferError):
        consumer.close()
    assert held.tobytes() == b"A" * 1016
    held.release()
    assert list(views) == []


@pytest.mark.parametrize("made", [wrapped_view, whole_view])
def test_a_view_outlives_its_iterator_and_its_ring(made) -> None:
    memory, producer, consumer, views, view = made()
    held = memoryview(view.payload.obj)
    del memory, producer, consumer, views, view
    gc.collect()
    assert held.tobytes() == b"A" * 1016


def test_a_claim_that_python_code_makes_amid_a_batch_is_refused() -> None:
    """Its room would begin where the batch goes on."""
    memory = bytearray(8192)
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    refused = []

    def payloads():
        yield b"first"
        try:
            producer.claim(8)
        except HvringError as error:
            refused.append(error)
        yield b"second"

    assert producer.send_many(payloads()) == (2, True)
    assert len(refused) == 1
    assert [packet.payload[:6].rstrip(b"\0") for packet in consumer] == [b"first", b"second"]
