# SPDX-License-Identifier: Apache-2.0
"""What a ring promises, one promise a test (PROTOCOL §2)."""

from __future__ import annotations

import gc
import struct
import sys

import pytest

from hvring.errors import BufferTooSmallError, PacketTooLargeError, RingError, RingFullError
from hvring.ring import RingConsumer, RingProducer


def total(n: int) -> int:
    return (16 + n + 7) // 8 * 8 + 8


def test_a_packet_on_the_wire_is_byte_for_byte_the_protocols(ends) -> None:
    memory, producer, _ = ends(start=64)
    producer.send(b"hello", transaction_id=0x1122334455667788, packet_type=6, flags=1)
    wire = bytes(memory[4096 + 64 : 4096 + 64 + 32])
    assert wire == struct.pack("<HHHHQ", 6, 2, 3, 1, 0x1122334455667788) + b"hello\0\0\0" + struct.pack(
        "<II", 0, 64
    )
    assert struct.unpack_from("<II", memory) == (96, 64)


def test_padding_is_zeroed_over_old_bytes(ends) -> None:
    memory, producer, consumer = ends(256)
    memory[4096:] = b"\xff" * 256
    for n in range(1, 60):
        producer.send(b"\xff" * n)
        packet = consumer.recv()
        assert packet.payload == b"\xff" * n + bytes(-n % 8)


@pytest.mark.parametrize("start", range(0, 128, 8))
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 40, 95])
def test_a_packet_wraps_at_any_word(start: int, n: int, ends) -> None:
    _, producer, consumer = ends(128, start)
    payload = bytes(range(1, n + 1))
    for round_ in range(40):
        producer.send(payload, transaction_id=round_)
        packet = consumer.recv()
        assert (packet.payload[:n], packet.transaction_id) == (payload, round_)


@pytest.mark.parametrize("start", [0, 8, 56, 120])
def test_the_ring_is_never_filled_exactly(start: int, ends) -> None:
    _, producer, consumer = ends(128, start)
    with pytest.raises(RingFullError):
        producer.send(bytes(128 - 24))  # would make write_index == read_index
    assert producer.max_payload == 128 - 24 - 8
    assert producer.send(bytes(producer.max_payload)) is True
    assert producer.free == 8
    with pytest.raises(RingFullError):
        producer.send(b"")
    assert len(consumer.recv().payload) == producer.max_payload


def test_full_writes_nothing(ends) -> None:
    memory, producer, _ = ends(128)
    producer.send(bytes(64))
    before = bytes(memory)
    with pytest.raises(RingFullError):
        producer.send(b"x" * 32)
    assert bytes(memory) == before


def test_what_can_never_fit_says_so(ends) -> None:
    _, producer, _ = ends(128)
    with pytest.raises(PacketTooLargeError, match="at most 96"):
        producer.send(bytes(1000))
    _, large, _ = ends(1 << 20)
    assert large.max_payload == 0xFFFF * 8 - 16
    with pytest.raises(PacketTooLargeError):
        large.send(bytes(0xFFFF * 8))
    assert large.send(bytes(large.max_payload)) is True


def test_a_signal_is_due_only_from_empty_to_not_empty_and_unmasked(ends) -> None:
    _, producer, consumer = ends()
    assert producer.send(b"1") is True
    assert producer.send(b"2") is False
    consumer.recv()
    assert producer.send(b"3") is False  # one is still unread
    consumer.recv()
    consumer.recv()
    consumer.mask()
    assert producer.send(b"4") is False
    consumer.recv()
    assert consumer.arm() == 0
    assert producer.send(b"5") is True


def test_arming_says_what_came_in_between(ends) -> None:
    _, producer, consumer = ends()
    consumer.mask()
    producer.send(bytes(8))
    assert consumer.arm() == total(8)


def test_a_batch_compares_with_the_index_before_it(ends) -> None:
    _, producer, consumer = ends()
    assert producer.send_many([b"a", b"b", b"c"], transaction_id=7) == (3, True)
    assert [p.transaction_id for p in consumer.recv_many()] == [7, 8, 9]


def test_a_batch_sends_what_fits_and_takes_back_what_fails(ends) -> None:
    _, producer, consumer = ends(128)
    assert producer.send_many([bytes(40)] * 3) == (1, True)
    assert len(consumer.recv_many()) == 1
    with pytest.raises(TypeError):
        producer.send_many([b"good", "not bytes"])
    assert consumer.recv() is None
    with pytest.raises(PacketTooLargeError):
        producer.send_many([bytes(200)])
    assert producer.send_many([b"x", bytes(200)])[0] == 1


def test_flow_control_wakes_the_writer_once_there_is_more_than_it_asked_for(ends) -> None:
    memory, producer, consumer = ends(256)
    for _ in range(3):
        producer.send(bytes(40))  # 64 bytes each: 64 free
    assert producer.want_room(40) is False
    assert struct.unpack_from("<I", memory, 12) == (64,)
    consumer.recv()
    assert consumer.take_signal() is True  # 128 free, strictly more than 64
    assert producer.want_room(40) is True
    assert struct.unpack_from("<I", memory, 12) == (0,)
    assert consumer.take_signal() is False


def test_no_flow_control_signal_for_a_writer_without_the_feature(ends) -> None:
    memory, producer, consumer = ends(256)
    for _ in range(3):
        producer.send(bytes(40))
    producer.want_room(40)
    struct.pack_into("<I", memory, 64, 0)
    consumer.recv()
    assert consumer.take_signal() is False


def test_the_feature_bit_is_set_and_other_bits_are_kept() -> None:
    memory = bytearray(8192)
    struct.pack_into("<I", memory, 64, 0xF0)
    RingProducer(memory)
    assert struct.unpack_from("<I", memory, 64) == (0xF1,)


def test_other_packet_types_are_stepped_over_and_counted(ends) -> None:
    memory, producer, consumer = ends()
    for n, kind in enumerate((1, 7, 9, 12, 63, 64, 0xFFFF)):
        producer.send(b"other")
        struct.pack_into("<H", memory, 4096 + 32 * n, kind)
    producer.send(b"data", transaction_id=5)
    producer.send(b"done", packet_type=11)
    producer.send(b"tail", packet_type=10)
    assert [p.type for p in consumer] == [6, 11]
    assert consumer.skipped == 8
    assert producer.free == producer.size


def test_every_type_can_be_asked_for(ends) -> None:
    memory, producer, consumer = ends(types=None)
    producer.send(b"x")
    struct.pack_into("<H", memory, 4096, 0xFFFF)
    assert consumer.recv().type == 0xFFFF
    with pytest.raises(ValueError, match="no packet type"):
        RingConsumer(bytearray(8192), types=[64])


def test_an_extended_descriptor_is_no_part_of_the_payload(ends) -> None:
    memory, _, consumer = ends(128, 112)
    struct.pack_into("<HHHHQ", memory, 4096 + 112, 6, 4, 5, 0, 9)  # 16 more header bytes, 8 of payload
    memory[4096 : 4096 + 24] = bytes(16) + b"payload!"
    struct.pack_into("<I", memory, 0, (112 + 48) % 128)
    assert consumer.recv().payload == b"payload!"
    assert consumer.recv() is None


def test_recv_into_leaves_a_packet_that_does_not_fit(ends) -> None:
    _, producer, consumer = ends()
    producer.send(bytes(range(16)))
    with pytest.raises(BufferTooSmallError, match="16 bytes"):
        consumer.recv_into(bytearray(15))
    with pytest.raises((TypeError, BufferError)):
        consumer.recv_into(bytes(16))
    buffer = bytearray(20)
    assert consumer.recv_into(buffer) == 16
    assert bytes(buffer[:16]) == bytes(range(16))
    assert consumer.recv_into(buffer) is None


@pytest.mark.parametrize("payload", [bytearray(b"abcd"), memoryview(b"abcd"), b"abcd"])
def test_any_contiguous_buffer_can_be_sent(payload, ends) -> None:
    _, producer, consumer = ends()
    producer.send(payload)
    assert consumer.recv().payload == b"abcd\0\0\0\0"
    with pytest.raises(BufferError):
        producer.send(memoryview(bytes(8))[::2])


@pytest.mark.parametrize("start", range(0, 128, 8))
def test_a_claim_is_filled_in_place_also_across_the_wrap(start: int, ends) -> None:
    _, producer, consumer = ends(128, start)
    with producer.claim(50, transaction_id=3) as claim:
        claim.buffer[:] = bytes(range(50))
        with pytest.raises(RingError, match="claim"):
            producer.send(b"")
    assert claim.signal is True
    packet = consumer.recv()
    assert (packet.payload, packet.transaction_id) == (bytes(range(50)) + bytes(6), 3)


def test_an_aborted_claim_leaves_no_trace(ends) -> None:
    _, producer, consumer = ends()
    with pytest.raises(ZeroDivisionError), producer.claim(64) as claim:
        claim.buffer[:8] = b"rubbish!"
        raise ZeroDivisionError
    assert consumer.recv() is None
    with pytest.raises(RingError, match="already"):
        claim.commit()
    producer.send(b"next")
    assert consumer.recv().payload[:4] == b"next"


def test_a_claim_waits_for_slices_of_its_buffer(ends) -> None:
    _, producer, consumer = ends()
    claim = producer.claim(16)
    kept = claim.buffer[4:8]
    with pytest.raises(BufferError, match="slices"):
        claim.commit()
    assert consumer.recv() is None
    kept.release()
    claim.commit()
    assert consumer.recv() is not None


@pytest.mark.parametrize("start", range(0, 128, 8))
def test_views_show_the_packets_in_place(start: int, ends) -> None:
    memory, producer, consumer = ends(128, start)
    producer.send(b"first567", transaction_id=1)
    producer.send(b"second..", transaction_id=2)
    seen = []
    for view in consumer.views():
        assert view.payload.readonly
        assert bytes(view) == bytes(view.payload)
        assert len(view) == 8
        seen.append((view.transaction_id, bytes(view.payload)))
    assert seen == [(1, b"first567"), (2, b"second..")]
    assert producer.free == producer.size


def test_a_view_ends_with_the_next_step_and_stops_other_reading(ends) -> None:
    _, producer, consumer = ends()
    producer.send(b"first...")
    producer.send(b"second..")
    views = consumer.views()
    view = next(views)
    with pytest.raises(RingError, match="views"):
        consumer.recv()
    kept = view.payload[:2]
    with pytest.raises(BufferError, match="slices"):
        next(views)
    kept.release()
    second = next(views)
    with pytest.raises(ValueError, match="released"):
        view.payload[0]
    with memoryview(second) as whole:
        assert whole == b"second.."
        with pytest.raises(BufferError, match="slices"):
            views.close()
    views.close()
    with pytest.raises(ValueError, match="released"):
        _ = second.payload
    with pytest.raises(BufferError, match="released"):
        memoryview(second)
    assert consumer.recv() is None


def test_a_view_can_be_sent_on(ends) -> None:
    _, producer, consumer = ends()
    _, to_another, another = ends()
    producer.send(b"passed on by hand")
    for view in consumer.views():
        to_another.send(view, transaction_id=view.transaction_id)
    assert another.recv().payload == b"passed on by hand".ljust(24, b"\0")


def test_an_iterator_dropped_midway_leaves_the_packet_in_hand(ends) -> None:
    _, producer, consumer = ends()
    producer.send(b"first...")
    views = consumer.views()
    view = next(views)
    del view, views
    assert consumer.recv().payload == b"first..."


def test_closing_needs_the_views_released_and_ends_everything(ends) -> None:
    memory, producer, consumer = ends()
    claim = producer.claim(8)
    with pytest.raises(BufferError):
        producer.close()
    claim.abort()
    producer.close()
    producer.close()
    consumer.close()
    memory.append(0)  # no buffer is exported any more
    for use in (
        lambda: producer.send(b""),
        lambda: producer.free,
        lambda: producer.claim(1),
        lambda: consumer.recv(),
        lambda: consumer.available,
        consumer.arm,
        consumer.views,
        consumer.mask,
        lambda: producer.want_room(1),
    ):
        with pytest.raises(RingError, match="closed"):
            use()


def test_one_ring_among_others_in_the_same_memory() -> None:
    memory = bytearray(3 * 8192)
    producer, consumer = RingProducer(memory, 8192, 8192), RingConsumer(memory, 8192, 8192)
    for _ in range(300):
        producer.send(bytes(range(100)))
        consumer.recv()
    assert not any(memory[:8192])
    assert not any(memory[16384:])


def test_a_control_page_of_another_size() -> None:
    memory = bytearray(65536 + 4096)
    producer, consumer = RingProducer(memory, control_size=65536), RingConsumer(memory, control_size=65536)
    producer.send(b"far data")
    assert bytes(memory[65536 + 16 : 65536 + 24]) == b"far data"
    assert consumer.recv().payload == b"far data"


@pytest.mark.parametrize(
    ("offset", "size"), [(-1, None), (9000, None), (0, 9000), (0, 4096), (0, 4100), (0, 8188), (4, 4096 + 64)]
)
def test_impossible_places_are_refused(offset: int, size: int | None) -> None:
    with pytest.raises(ValueError, match=r"."):
        RingProducer(bytearray(8192), offset, size)
    with pytest.raises((TypeError, BufferError)):
        RingProducer(bytes(8192))


@pytest.mark.parametrize("end", [RingProducer, RingConsumer])
def test_a_ring_in_a_reference_cycle_lets_go_of_its_memory(end, monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *what: complaints.append(what))
    cycle: list[object] = [end(bytearray(8192))]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert complaints == []


def test_a_claim_that_is_dropped_is_aborted(ends) -> None:
    _, producer, consumer = ends()
    claim = producer.claim(64)
    kept = claim.buffer
    del claim
    kept.release()
    producer.send(b"goes on")
    assert consumer.recv().payload[:7] == b"goes on"


def test_room_that_there_will_never_be_is_not_waited_for(ends) -> None:
    _, producer, _ = ends(128)
    for length in (producer.max_payload + 1, 1 << 40):
        with pytest.raises(PacketTooLargeError):
            producer.want_room(length)
    with pytest.raises(ValueError, match="negative"):
        producer.want_room(-1)
    assert producer.want_room(producer.max_payload)


def test_who_neither_masks_nor_arms_is_signalled_for_every_packet_and_who_masks_for_none() -> None:
    """Of which follows how many signals are needless: PROTOCOL §2.6 knows the mask and the indices, not who looks."""
    memory = bytearray(8192)
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    for _ in range(5):
        assert producer.send(b"found without having been waited for") is True
        assert consumer.recv() is not None
    consumer.mask()
    for _ in range(5):
        assert producer.send(b"found while masked") is False
        assert consumer.recv() is not None
    for _ in range(5):
        assert consumer.arm() == 0
        assert producer.send(b"announced once by each arming") is True
        consumer.mask()
        assert consumer.recv() is not None
        assert producer.send(b"and not again") is False
        assert consumer.recv() is not None
