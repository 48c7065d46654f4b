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
    TimeSync(clock, set_clock=True).receive(v4(packet, flags))
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
    service = TimeSync(clock, set_clock=True)
    assert status_of(service.receive(v4(packet, SampleFlag.SYNC))) == Status.OK
    assert service.counters.effect_errors == 1
    assert service.measurement is not None


def test_times_before_1970_do_no_harm(clock, packet, status_of):
    service = TimeSync(clock, set_clock=True)
    assert status_of(service.receive(v4(packet, 1, parent=0))) == Status.OK
    assert status_of(service.receive(v4(packet, 1, parent=2**64 - 1))) == Status.OK


def test_a_reset_forgets_the_measurement(clock, packet):
    service = TimeSync(clock)
    service.receive(v4(packet, 2))
    service.reset()
    assert service.measurement is None
    assert service.age is None
