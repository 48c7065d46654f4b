# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from hvring.ic import MessageType, NegotiateRequest, SampleFlag, Status, TimeSampleV3, TimeSampleV4, Version
from hvring.ic.timesync import from_unix_ns
from hvring.services import TimeSync

SECOND = 10**9
HOST = from_unix_ns(1007 * SECOND)  # the fake guest says 1000 s


def v4(packet, flags, parent=HOST, reference=0, **more):
    return packet(MessageType.TIMESYNC, TimeSampleV4(parent, reference, flags, **more).encode(), (4, 0))


def agree(service, packet, version):
    body = NegotiateRequest((Version(3, 0),), (version,)).encode()
    service.receive(packet(MessageType.NEGOTIATE, body))
    assert service.negotiated == (Version(3, 0), version)


@pytest.mark.parametrize("flags", [0, SampleFlag.SYNC, SampleFlag.SAMPLE, 3, 0xFF])
def test_a_sample_is_measured_and_echoed_without_touching_the_clock(
    flags, clock, monotonic, packet, status_of
):
    service = TimeSync(clock, monotonic=monotonic)
    request = v4(packet, flags, leap=1, stratum=3)
    reply = service.receive(request)
    assert reply.payload == request[:25] + b"\5" + request[26:]
    assert status_of(reply) == Status.OK
    found = service.measurement
    assert (found.offset_ns, found.flags, found.leap, found.stratum) == (7 * SECOND, flags & 3, 1, 3)
    monotonic.now += 2.5
    assert service.age == 2.5
    assert clock.set_to == []


@pytest.mark.parametrize(("flags", "expected"), [(0, 0), (1, 1), (2, 0), (3, 1)])
def test_only_sync_sets_the_clock_and_only_when_allowed(flags, expected, clock, packet):
    TimeSync(clock, mode="step").receive(v4(packet, flags))
    assert clock.set_to == [1007 * SECOND] * expected


@pytest.mark.parametrize(
    ("counter", "reference", "seconds"),
    [(None, 5, 0), (80_000_000, 50_000_000, 3), (50_000_000, 80_000_000, 0), (0, 2**64 - 1, 0)],
)
def test_the_time_on_the_way_counts_but_never_backwards(counter, reference, seconds, clock, packet):
    clock.counter = counter
    service = TimeSync(clock)
    service.receive(v4(packet, SampleFlag.SAMPLE, reference=reference))
    assert service.measurement.offset_ns == (7 + seconds) * SECOND


@pytest.mark.parametrize(
    ("counter", "version", "corrected"),
    [(60_000_000, 4, True), (None, 4, False), (1, 4, False), (60_000_000, 3, False)],
)
def test_a_measurement_says_how_sure_it_is(clock, packet, monotonic, counter, version, corrected):
    """Without the counter, by what the message may have waited: since the one before, or since the opening."""
    clock.counter = counter
    service = TimeSync(clock, monotonic=monotonic)
    monotonic.now += 100
    service.reset()
    host = HOST
    for seconds in (3, 5):
        monotonic.now += seconds
        host += seconds * 10**7
        if version == 4:
            service.receive(v4(packet, SampleFlag.SAMPLE, host, reference=50_000_000))
        else:
            service.receive(packet(MessageType.TIMESYNC, TimeSampleV3(host, 2).encode(), (3, 0)))
        found = service.measurement
        assert found.is_corrected is corrected
        assert found.uncertainty_ns == (100 if corrected else seconds * SECOND)


def test_messages_that_lay_in_the_ring_together_waited_together(clock, packet, monotonic):
    """The second came right behind the first: that says nothing about how long it was there."""
    service = TimeSync(clock, monotonic=monotonic)
    found = []
    for passes, host in ((0, 1000), (30, 1001), (0.001, 1002), (0.001, 1030), (5, 1035)):
        monotonic.now += passes
        service.receive(v4(packet, SampleFlag.SAMPLE, parent=from_unix_ns(host * SECOND)))
        found.append(service.measurement.uncertainty_ns / SECOND)
    # Host and guest began together: what was true each time is 0, 29, 28.001, 0.002 and 0.002.
    assert found == pytest.approx([0, 30, 29.001, 1.002, 5], abs=1e-5)


def test_the_guests_time_is_that_of_the_moment_at_which_the_counter_was_read(clock, packet):
    times = iter((1000 * SECOND, 1000 * SECOND + 4000))
    clock.now = lambda: next(times)
    clock.counter = 0
    service = TimeSync(clock)
    service.receive(v4(packet, SampleFlag.SAMPLE))
    found = service.measurement
    assert (found.offset_ns, found.uncertainty_ns) == (7 * SECOND - 2000, 2100)


def test_the_newest_sample_wins(clock, packet):
    service = TimeSync(clock)
    for n in (1, 5, 2):
        service.receive(v4(packet, 2, parent=from_unix_ns((1000 + n) * SECOND)))
    assert service.measurement.offset_ns == 2 * SECOND


def test_the_negotiated_version_decides_the_layout(clock, packet):
    service = TimeSync(clock)
    agree(service, packet, Version(3, 0))
    body = TimeSampleV3(HOST, SampleFlag.SYNC, child=1, round_trip=2).encode()
    service.receive(packet(MessageType.TIMESYNC, body, (4, 0)))
    assert service.measurement.flags == SampleFlag.SYNC
    agree(service, packet, Version(4, 0))
    service.receive(v4(packet, SampleFlag.SAMPLE))
    assert service.measurement.flags == SampleFlag.SAMPLE


def test_before_negotiation_the_message_says_its_version(clock, packet):
    service = TimeSync(clock)
    service.receive(packet(MessageType.TIMESYNC, TimeSampleV3(HOST, 1).encode(), (3, 0)))
    assert service.measurement.offset_ns == 7 * SECOND


@pytest.mark.parametrize(("version", "size", "answered"), [((4, 0), 17, 0), ((4, 0), 22, 1), ((3, 0), 25, 1)])
def test_bodies_as_short_as_linux_takes_them_are_answered(version, size, answered, clock, packet):
    service = TimeSync(clock)
    sample = TimeSampleV4(HOST, 0, 1) if version == (4, 0) else TimeSampleV3(HOST, 1)
    reply = service.receive(packet(MessageType.TIMESYNC, sample.encode()[:size], version))
    assert (reply is not None) == (service.measurement is not None) == bool(answered)


def test_a_version_3_body_without_flags_is_met_with_silence(clock, packet):
    service = TimeSync(clock)
    agree(service, packet, Version(3, 0))
    # 22 bytes would do for version 4
    assert service.receive(packet(MessageType.TIMESYNC, bytes(22), (3, 0))[:52]) is None
    assert service.counters.short == 1


def test_a_clock_that_cannot_be_set_is_counted_and_answered_all_the_same(clock, packet, status_of):
    clock.broken = True
    service = TimeSync(clock, mode="step")
    assert status_of(service.receive(v4(packet, SampleFlag.SYNC))) == Status.OK
    assert service.counters.effect_errors == 1
    assert service.measurement is not None


def test_times_before_1970_do_no_harm(clock, packet, status_of):
    service = TimeSync(clock, mode="step")
    assert status_of(service.receive(v4(packet, 1, parent=0))) == Status.OK
    assert status_of(service.receive(v4(packet, 1, parent=2**64 - 1))) == Status.OK


def test_a_reset_forgets_the_measurement(clock, packet):
    service = TimeSync(clock)
    service.receive(v4(packet, 2))
    service.reset()
    assert service.measurement is None
    assert service.age is None
