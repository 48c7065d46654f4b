# SPDX-License-Identifier: Apache-2.0
"""Messages instead of packets: one at a time, within the kernel's patience (the kernel's side: tests/hv_utils)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from hvring.agent.blocking import serve
from hvring.agent.message_responder import MessageResponder, PacketsOnlyError, responder_for
from hvring.agent.responder import Responder
from hvring.errors import ChannelRescindedError, EffectError
from hvring.events import Event, EventKind
from hvring.ic import KvpGet, KvpValue, Status
from hvring.pending import Pending
from hvring.services import IntegrationService, Response, Result


class FakeTime:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class Slow(IntegrationService[KvpGet]):
    """Answers "now" at once, is silent to "silent", and takes its time for anything else: ``work`` says how."""

    name = "kvp"

    def __init__(self) -> None:
        super().__init__()
        self.work: deque[Result | Exception] = deque()
        self.cancelled = 0
        self.resets = 0
        self.acted = 0
        self.at = 1000.0
        self.descriptor = -1

    def handle(self, message: KvpGet) -> Result:
        if message.key == "now":
            return Response(message=KvpValue(0, "now", "value"), then=self.act)
        if message.key == "silent":
            return None
        return Pending(self.resume, self.at, self.descriptor, self.cancel)

    def resume(self) -> Result:
        outcome = self.work.popleft()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cancel(self) -> None:
        self.cancelled += 1

    def act(self) -> None:
        self.acted += 1

    def reset(self) -> None:
        super().reset()
        self.resets += 1


class Scripted:
    """A channel of messages that a test writes; ``answers`` are what was heard in time."""

    closed = False

    def __init__(self, clock: FakeTime) -> None:
        self.clock = clock
        self.messages: deque[Any] = deque()
        self.answers: list[tuple[int, Any]] = []
        self.answer_by: float | None = None
        self.gone = False
        self.refuses: type[Exception] | None = None
        self.late = 0

    def has_arrived(self) -> bool:
        if self.gone:
            raise ChannelRescindedError("gone")
        return bool(self.messages)

    def recv(self) -> Any | None:
        if not self.has_arrived():
            return None
        self.answer_by = self.clock() + 27
        return self.messages.popleft()

    def answer(self, status: int, message: Any = None) -> bool:
        if self.refuses is not None and message is not None:
            raise self.refuses("no")
        self.answer_by = None
        if self.has_arrived():
            self.late += 1
            return False
        self.answers.append((status, message))
        return True

    def wait(self, timeout: float | None = None) -> bool:
        if not self.messages:
            self.gone = True
        return self.has_arrived()

    def fileno(self) -> int:
        raise AssertionError("nobody waits here")

    def close(self) -> None:
        self.closed = True

    def stats(self) -> dict[str, int]:
        return {}


@pytest.fixture
def clock() -> FakeTime:
    return FakeTime()


@pytest.fixture
def channel(clock) -> Scripted:
    return Scripted(clock)


@pytest.fixture
def service() -> Slow:
    return Slow()


@pytest.fixture
def told(service) -> list[Event]:
    events: list[Event] = []
    service.on_event = events.append
    return events


@pytest.fixture
def responder(channel, service, clock) -> MessageResponder:
    return MessageResponder(channel, service, monotonic=clock)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_messages_are_answered_in_their_order_and_acted_upon_behind_the_answer(
    channel, service, responder
) -> None:
    channel.messages.append(KvpGet(0, "now"))
    assert responder.respond() is False
    assert channel.answers == [(Status.OK, KvpValue(0, "now", "value"))]
    assert (service.acted, service.counters.requests, service.counters.replies) == (1, 1, 1)
    assert not responder.is_blocked
    assert responder.timeout() is None


def test_silence_is_no_answer_here(channel, responder) -> None:
    channel.messages.append(KvpGet(0, "silent"))
    responder.respond()
    assert channel.answers == [(Status.FAIL, None)]


def test_what_takes_its_time_is_waited_for_by_its_descriptor(channel, service, responder, pipe) -> None:
    service.descriptor = pipe[0]
    service.work += [Pending(service.resume, 2000.0, -1, service.cancel), Response(Status.DISK_FULL)]
    channel.messages.append(KvpGet(0, "slow"))
    assert responder.respond() is False
    assert responder.is_blocked
    assert responder.descriptors() == {pipe[0]}
    assert responder.timeout() == 27.0, "not 950: the kernel has less patience"
    assert responder.respond() is False
    assert len(service.work) == 2, "not yet readable"
    os.write(pipe[1], b"!")
    service.at = 0.0
    assert responder.respond() is False
    assert responder.descriptors() == set(), "the next step waits for time only"


def test_what_takes_longer_than_the_kernel_waits_is_broken_off_and_said_to_have_failed(
    channel, service, responder, clock, told
) -> None:
    channel.messages.append(KvpGet(0, "slow"))
    responder.respond()
    clock.now += 26.9
    responder.respond()
    assert channel.answers == []
    clock.now += 0.1
    assert responder.timeout() == 0.0
    responder.respond()
    assert channel.answers == [(Status.FAIL, None)]
    assert service.cancelled == 1
    assert not responder.is_blocked
    assert [(event.kind, "longer than the kernel waits" in event.detail) for event in told] == [
        (EventKind.FAILED, True)
    ]


def test_a_next_request_breaks_off_the_one_before_and_is_answered_alone(
    channel, service, responder, told
) -> None:
    channel.messages.append(KvpGet(0, "slow"))
    responder.respond()
    channel.messages.append(KvpGet(0, "now"))
    assert responder.respond() is False
    assert service.cancelled == 1
    assert channel.answers == [(Status.OK, KvpValue(0, "now", "value"))]
    assert ["too late" in event.detail for event in told] == [True]


def test_an_answer_that_came_too_late_is_not_acted_upon(channel, service, responder, told) -> None:
    channel.messages += [KvpGet(0, "now"), KvpGet(0, "now")]  # the second comes while the first is answered
    responder.respond()
    assert channel.late == 1
    assert service.acted == 1
    assert len(told) == 1


def test_too_late_again_and_again_is_told_once(channel, service, responder, told) -> None:
    channel.messages += [KvpGet(0, "now")] * 10
    responder.respond()
    assert channel.late == 9
    assert len(told) == 1
    assert service.counters.effect_errors == 9


def test_what_a_resumed_effect_raises_becomes_its_status(channel, service, responder, clock) -> None:
    service.at = 60.0
    service.work.append(EffectError("no room", Status.DISK_FULL))
    channel.messages.append(KvpGet(0, "slow"))
    responder.respond()
    clock.now = 60.0
    responder.respond()
    assert channel.answers == [(Status.DISK_FULL, None)]


def test_an_answer_that_no_message_can_hold_is_a_failure_and_told(channel, responder, told) -> None:
    channel.refuses = ValueError
    channel.messages.append(KvpGet(0, "now"))
    responder.respond()
    assert channel.answers == [(Status.FAIL, None)]
    assert len(told) == 1


def test_the_end_undoes_what_is_half_done_and_nobody_resumes_it(channel, service, responder, told) -> None:
    channel.messages.append(KvpGet(0, "slow"))
    responder.respond()
    channel.gone = True
    with pytest.raises(ChannelRescindedError):
        responder.respond()
    responder.end()
    assert (service.cancelled, service.resets) == (1, 1)
    assert not responder.is_blocked
    assert told == [], "nothing was too late"


def test_others_get_their_turn(channel, responder, clock) -> None:
    channel.messages += [KvpGet(0, "now")] * 100
    assert responder.respond(limit=64) is True
    assert len(channel.messages) == 36
    assert responder.respond(seconds=0.0) is True
    assert len(channel.messages) == 35


def test_serve_works_over_messages_too(channel, service) -> None:
    channel.messages.append(KvpGet(0, "now"))
    with pytest.raises(ChannelRescindedError):
        serve(service, channel)
    assert len(channel.answers) == 1
    assert service.resets == 2


def test_what_answers_packets_only_is_not_served_over_messages(channel) -> None:
    class Own:
        name = "own"

    with pytest.raises(PacketsOnlyError, match="own answers packets only"):
        responder_for(channel, Own())  # type: ignore[arg-type]
    assert PacketsOnlyError.is_final


def test_a_channel_of_packets_is_none_of_messages() -> None:
    class Rings:
        recheck_every = 0.0

    assert isinstance(responder_for(Rings(), Slow()), Responder)  # type: ignore[arg-type]
