# SPDX-License-Identifier: Apache-2.0
"""Backup over a freezer that takes its time: what is under way is waited for, broken off, and always ended."""

from __future__ import annotations

import itertools
import os
import re
import time

import pytest

from hvring.errors import EffectError
from hvring.events import EventKind
from hvring.ic import MessageType, Status, VssFlags, VssFreeze, VssOperation, VssRequest
from hvring.pending import Pending, is_due
from hvring.services import vss as module
from hvring.services.base import Response
from hvring.services.vss import MAX_FROZEN, RETRY, BackupState, Vss

FREEZE, THAW = VssOperation.FREEZE, VssOperation.THAW
MOUNTS = frozenset({"/", "/srv"})


class ScriptedFreezer:
    """Of two mounts; is at its work until the test says that it is done, or has failed."""

    ready = True
    summary = "/srv, /"

    def __init__(self, clock=None):
        self.clock = clock or (lambda: 50.0)
        self.work = None  # what is under way: "freeze", "thaw" or nothing
        self.held = set()
        self.calls = []  # what was begun
        self.outcome = None  # True: done; an error: failed; None: still at work
        self.why = None  # it was lost
        self.descriptor = -1  # tells that it is done, before its time
        self.resumed = 0

    @property
    def frozen(self):
        return bool(self.held)

    @property
    def idle(self):
        return self.work is None and not self.held

    def freeze(self):
        assert self.work is None
        if self.held == MOUNTS:
            return None
        return self._begin("freeze")

    def thaw(self):
        if self.work is None and not self.held:
            return None
        return self._begin("thaw")

    def lost(self):
        return self.why

    def watch(self):
        return -1

    def lose(self):
        self.held, self.why = set(), "somebody came"

    def _begin(self, work):
        self.calls.append(work)
        self.work, self.outcome, self.why = work, None, None
        return self._pending(work)

    def _pending(self, work):
        return Pending(lambda: self._go_on(work), self.clock() + 1, self.descriptor)

    def _go_on(self, work):
        assert self.work == work, "what was broken off is not gone on with"
        self.resumed += 1
        if self.outcome is None:
            return self._pending(work)
        outcome, self.work, self.outcome = self.outcome, None, None
        if outcome is True:
            self.held = set(MOUNTS) if work == "freeze" else set()
            return None
        if work == "freeze":
            self.held = set()
        else:
            self.held.discard("/srv")  # some of it does thaw
        raise outcome


@pytest.fixture
def freezer(monotonic):
    return ScriptedFreezer(monotonic)


@pytest.fixture
def service(freezer, monotonic):
    return Vss(freezer, monotonic=monotonic)


@pytest.fixture
def send(service, packet):
    return lambda operation: service.receive(packet(MessageType.VSS, VssRequest(operation).encode()))


@pytest.fixture
def resume(monotonic, service):
    """Go on with an answer that is due a second later."""

    def go_on(answer):
        assert isinstance(answer, Pending)
        monotonic.now += 1
        return answer.resume()

    return go_on


@pytest.fixture
def events(service):
    heard = []
    service.on_event = lambda event: heard.append((event.kind, event.detail))
    return heard


@pytest.fixture
def hold(send, freezer, resume, status_of):
    """Freeze, to the end."""

    def freeze():
        answer = send(FREEZE)
        freezer.outcome = True
        assert status_of(resume(answer)) == Status.OK

    return freeze


def test_a_freeze_is_answered_once_it_is_complete(service, send, freezer, resume, status_of, events):
    answer = resume(send(FREEZE))
    assert isinstance(answer, Pending)
    assert service.counters.replies == 0
    freezer.outcome = True
    assert status_of(resume(answer)) == Status.OK
    assert service.deadline() == MAX_FROZEN
    assert freezer.calls == ["freeze"]
    assert service.counters.replies == 1
    assert events == [(EventKind.ASKED, "freeze"), (EventKind.FROZEN, "/srv, /")]


def test_an_answer_that_is_asked_for_too_early_disturbs_no_work(send, freezer):
    answer = send(FREEZE)
    assert isinstance(answer.resume(), Pending)
    assert freezer.resumed == 0


def test_a_freeze_that_fails_in_the_end_says_so(service, send, freezer, resume, status_of, events):
    answer = send(FREEZE)
    freezer.outcome = EffectError("no", 0x80070015)
    assert status_of(resume(answer)) == 0x80070015
    assert service.state is BackupState.IDLE
    assert service.counters.effect_errors == 1
    assert events[-1] == (EventKind.FAILED, "freeze: no")
    assert status_of(send(THAW)) == Status.OK


def test_a_thaw_is_answered_once_it_is_complete(service, send, freezer, resume, hold, status_of, events):
    hold()
    answer = send(THAW)
    assert isinstance(answer, Pending)
    assert service.deadline() == 1
    freezer.outcome = True
    assert service.frozen
    assert service.quiet
    service.tick()  # too early
    assert service.frozen
    assert status_of(resume(answer)) == Status.OK
    assert freezer.idle
    assert not service.quiet
    assert events[-1] == (EventKind.THAWED, "")


@pytest.mark.parametrize("first", ["the clock", "the answer"])
def test_whoever_asks_first_the_answer_is_the_same(first, service, send, freezer, monotonic, hold, status_of):
    hold()
    answer = send(THAW)
    monotonic.now += 1
    freezer.outcome = True
    if first == "the clock":
        service.tick()
    assert status_of(answer.resume()) == Status.OK
    service.tick()
    assert freezer.resumed == 2  # once per work


def test_a_clock_that_looks_in_between_takes_no_wake_up_away_from_the_answer(packet, status_of):
    """A loop calls tick() whenever anything happens, and asks the answer's descriptor after that."""
    ours, theirs = os.pipe()

    class Freezer:
        ready = frozen = True

        def freeze(self):
            return Pending(lambda: os.read(ours, 1) and None, time.monotonic() + 1000, ours)

        def thaw(self):
            return None

    with open(ours, "rb", 0), open(theirs, "wb", 0) as pipe:
        service = Vss(Freezer())
        answer = service.receive(packet(MessageType.VSS, VssRequest(FREEZE).encode()))
        assert service.watch() == answer.descriptor == ours
        pipe.write(b"x")
        service.tick()
        assert is_due(answer)
        assert status_of(answer.resume()) == Status.OK
        service.receive(packet(MessageType.VSS, VssRequest(THAW).encode()))
        service.receive(packet(MessageType.VSS, VssRequest(FREEZE).encode())).cancel()
        pipe.write(b"x")
        service.tick()  # nobody waits for an answer any more
        assert service.state is BackupState.FROZEN


def test_the_time_of_a_freeze_counts_from_the_first_mount(
    service, send, freezer, monotonic, resume, status_of
):
    answer = send(FREEZE)
    assert not service.frozen
    freezer.held = {"/srv"}
    answer = resume(answer)
    assert service.frozen
    monotonic.now += 10
    freezer.outcome = True
    assert status_of(answer.resume()) == Status.OK
    assert service.deadline() == MAX_FROZEN - 10


def test_a_freeze_that_is_half_done_for_too_long_is_broken_off(
    service, send, freezer, monotonic, resume, status_of
):
    answer = send(FREEZE)
    freezer.held = {"/srv"}
    answer = resume(answer)
    monotonic.now += MAX_FROZEN
    assert service.deadline() == 0
    service.tick()
    assert freezer.calls == ["freeze", "thaw"]
    assert status_of(answer.resume()) == Status.FAIL
    freezer.outcome = True
    monotonic.now += 1
    service.tick()
    assert freezer.idle
    assert service.deadline() is None
    assert status_of(send(THAW)) == Status.OK  # that it did not hold was said in FREEZE's answer


def test_a_second_freeze_waits_for_the_same(service, send, freezer, resume, status_of):
    first, second = send(FREEZE), send(FREEZE)
    assert isinstance(second, Pending)
    freezer.outcome = True
    assert status_of(resume(second)) == Status.OK
    assert status_of(first.resume()) == Status.OK
    assert freezer.calls == ["freeze"]


def test_two_that_wait_for_the_same_freeze_hear_the_same_failure(service, send, freezer, resume, status_of):
    first, second = send(FREEZE), send(FREEZE)
    freezer.outcome = EffectError("no", 0x80070015)
    assert status_of(resume(first)) == status_of(second.resume()) == 0x80070015
    assert service.counters.effect_errors == 1


def test_a_thaw_breaks_off_a_freeze_that_is_under_way(service, send, freezer, resume, status_of):
    freeze, thaw = send(FREEZE), send(THAW)
    assert freezer.calls == ["freeze", "thaw"]
    assert status_of(freeze.resume()) == Status.FAIL
    freezer.outcome = True
    assert status_of(resume(thaw)) == Status.OK
    assert freezer.idle
    assert service.deadline() is None


def test_a_freeze_during_a_thaw_begins_after_it(service, send, freezer, resume, status_of):
    freeze, thaw = send(FREEZE), send(THAW)
    again = send(FREEZE)
    assert isinstance(again, Pending)
    freezer.outcome = True  # of the thaw
    again = resume(again)
    assert freezer.calls == ["freeze", "thaw", "freeze"]
    assert status_of(freeze.resume()) == Status.FAIL
    assert status_of(thaw.resume()) == Status.OK
    freezer.outcome = True
    assert status_of(resume(again)) == Status.OK
    assert service.state is BackupState.FROZEN


def test_a_reset_breaks_off_a_freeze_and_the_clock_sees_to_the_rest(
    service, send, freezer, monotonic, status_of
):
    send(FREEZE)
    service.reset()
    assert freezer.calls == ["freeze", "thaw"]
    service.reset()
    assert freezer.calls == ["freeze", "thaw"]
    monotonic.now += 1
    service.tick()
    assert service.deadline() == 1
    freezer.outcome = True
    monotonic.now += 1
    service.tick()
    assert freezer.idle
    assert service.deadline() is None
    assert status_of(send(THAW)) == Status.FAIL  # the freeze that it ends was another channel's
    assert status_of(send(THAW)) == Status.OK


@pytest.mark.parametrize(
    "begun_by",
    [
        "reset of a freeze",
        "reset of a hold",
        "time of a freeze",
        "time of a hold",
        "time after a failed thaw",
    ],
)
def test_a_thaw_that_nobody_waits_for_goes_on_as_soon_as_there_is_news_of_it(
    begun_by, service, send, freezer, monotonic, resume, hold, status_of
):
    """And not at its time, with a loop that wakes up for the news over and over until then."""
    if begun_by.endswith("of a freeze"):
        answer = send(FREEZE)
        freezer.held = {"/srv"}
        resume(answer)
    else:
        hold()
    if begun_by == "time after a failed thaw":
        answer = send(THAW)
        freezer.outcome = EffectError("no")
        assert status_of(resume(answer)) == Status.FAIL
    news, tell = os.pipe()
    freezer.descriptor = news
    try:
        if begun_by.startswith("reset"):
            service.reset()
        else:
            monotonic.now += RETRY if begun_by.endswith("thaw") else MAX_FROZEN
            service.tick()
        assert freezer.work == "thaw"
        service.tick()
        assert not freezer.idle
        freezer.outcome = True
        os.write(tell, b"x")
        assert service.watch() == news
        service.tick()
        assert freezer.idle
        assert service.watch() == -1
    finally:
        os.close(news)
        os.close(tell)


def test_a_thaw_that_the_time_began_is_waited_for_and_answered_as_too_late(
    service, send, freezer, monotonic, resume, hold, status_of
):
    hold()
    monotonic.now += MAX_FROZEN
    service.tick()
    thaw = send(THAW)
    assert isinstance(thaw, Pending)
    assert freezer.calls == ["freeze", "thaw"]
    freezer.outcome = True
    assert status_of(resume(thaw)) == Status.FAIL
    assert status_of(send(THAW)) == Status.OK


def test_after_a_failed_thaw_a_freeze_is_never_answered_by_what_is_left_of_it(
    service, send, freezer, resume, hold, status_of
):
    hold()
    thaw = send(THAW)
    freezer.outcome = EffectError("no")
    assert status_of(resume(thaw)) == Status.FAIL
    assert service.state is BackupState.UNTHAWED
    assert freezer.held == {"/"}  # half of it
    answer = send(FREEZE)
    assert freezer.calls == ["freeze", "thaw", "thaw"]  # first things first
    freezer.outcome = EffectError("no")
    assert status_of(resume(answer)) == Status.FAIL
    answer = send(FREEZE)
    freezer.outcome = True
    answer = resume(answer)
    assert freezer.calls[-2:] == ["thaw", "freeze"]
    freezer.outcome = True
    assert status_of(resume(answer)) == Status.OK
    assert freezer.held == MOUNTS


def test_after_a_failed_thaw_a_second_one_is_not_answered_by_the_first(
    service, send, freezer, resume, hold, status_of
):
    hold()
    thaw = send(THAW)
    freezer.outcome = EffectError("no")
    assert status_of(resume(thaw)) == Status.FAIL
    for outcome, status in ((EffectError("no"), Status.FAIL), (True, Status.OK)):
        thaw = send(THAW)
        freezer.outcome = outcome
        assert status_of(resume(thaw)) == status
    assert freezer.idle


def test_a_thaw_that_fails_in_the_end_is_tried_again(
    service, send, freezer, monotonic, resume, hold, status_of
):
    hold()
    thaw = send(THAW)
    freezer.outcome = EffectError("no")
    assert status_of(resume(thaw)) == Status.FAIL
    assert service.deadline() == RETRY
    assert service.quiet
    monotonic.now += RETRY
    service.tick()
    assert freezer.calls == ["freeze", "thaw", "thaw"]
    freezer.outcome = True
    monotonic.now += 1
    service.tick()
    assert freezer.idle
    assert service.deadline() is None


@pytest.mark.parametrize("noticed_by", ["the clock", "the host's THAW", "the host's FREEZE"])
def test_a_freeze_that_was_lost_is_told_and_no_thaw_of_it_is_ok(
    noticed_by, service, send, freezer, resume, hold, status_of, events
):
    hold()
    freezer.lose()
    if noticed_by == "the clock":
        service.tick()
        assert service.state is BackupState.LAPSED
        assert not service.quiet
    elif noticed_by == "the host's FREEZE":
        answer = send(FREEZE)  # not answered by the one that was lost
        assert freezer.calls == ["freeze", "freeze"]
        freezer.outcome = True
        assert status_of(resume(answer)) == Status.OK
        assert (EventKind.FAILED, "backup: the freeze did not hold: somebody came") in events
        return
    assert status_of(send(THAW)) == Status.FAIL
    assert status_of(send(THAW)) == Status.OK
    assert (EventKind.FAILED, "backup: the freeze did not hold: somebody came") in events
    assert service.counters.effect_errors == 1


def test_what_is_left_of_a_lost_freeze_is_thawed_until_it_is(
    service, send, freezer, monotonic, hold, status_of
):
    hold()
    freezer.why = "the guardian was killed"
    service.tick()
    assert freezer.calls == ["freeze", "thaw"]
    for _ in range(3):
        freezer.outcome = EffectError("no")
        monotonic.now += 1
        service.tick()
        assert service.state is BackupState.LAPSING
        monotonic.now += RETRY
        service.tick()
    freezer.outcome = True
    monotonic.now += 1
    service.tick()
    assert service.state is BackupState.LAPSED
    assert freezer.idle
    assert status_of(send(THAW)) == Status.FAIL


def test_a_freezer_that_knows_nothing_of_losses_will_do(monotonic, freezer, packet, status_of):
    class Plain:
        ready = True
        frozen = False

        def freeze(self):
            self.frozen = True

        def thaw(self):
            self.frozen = False

    service = Vss(Plain(), monotonic=monotonic)
    assert service.handle(VssRequest(FREEZE)) == Response()
    service.tick()
    assert service.watch() == -1
    assert service.handle(VssFlags(THAW)) == Response()


def test_messages_need_no_bytes(service, freezer, monotonic):
    answer = service.handle(VssFreeze())
    monotonic.now += 1
    freezer.outcome = True
    assert answer.resume() == Response()
    assert service.frozen
    assert service.handle(VssFlags(VssOperation.GET_DM_INFO)) == Response(
        message=VssFlags(VssOperation.GET_DM_INFO)
    )


def test_the_table_of_the_module_is_the_one_of_the_code():
    assert module.table() in re.sub(r"^    ", "", module.__doc__, flags=re.MULTILINE)


ACTIONS = ("freeze", "thaw", "reset", "ask again", "some are frozen", "done", "failed", "lost", "time")


@pytest.mark.parametrize("first", ACTIONS)
def test_whatever_the_order_nothing_stays_frozen(first, packet, status_of):
    """All orders of five: what is frozen or under way has a time that ends it, and no answer tells a lie."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    requests = {
        "freeze": packet(MessageType.VSS, VssRequest(FREEZE).encode()),
        "thaw": packet(MessageType.VSS, VssRequest(THAW).encode()),
    }
    for rest in itertools.product(ACTIONS, repeat=4):
        order = (first, *rest)
        clock = Clock()
        freezer = ScriptedFreezer(clock)
        service = Vss(freezer, monotonic=clock)
        waiting = []
        broken = False  # the freeze that the host was told of did not hold

        def take(kind, answer, waiting=waiting, freezer=freezer, order=order):
            nonlocal broken
            if isinstance(answer, Pending):
                waiting.append((kind, answer))
            elif status_of(answer) == Status.OK and kind == "thaw":
                assert freezer.idle, order
                assert not broken, order
            elif status_of(answer) == Status.OK:
                assert freezer.held == MOUNTS, order
                broken = False
            elif kind == "thaw":
                broken = False

        for action in order:
            match action:
                case "freeze" | "thaw" if not any(kind == action for kind, _ in waiting):
                    take(action, service.receive(requests[action]))
                case "reset":
                    service.reset()
                    waiting.clear()  # as a responder does with its channel's end
                    broken = False
                case "ask again" if waiting:
                    clock.now += 1
                    kind, later = waiting.pop(0)
                    take(kind, later.resume())
                case "some are frozen" if freezer.work == "freeze":
                    freezer.held = {"/srv"}
                case "done" if freezer.work is not None:
                    freezer.outcome = True
                case "failed" if freezer.work is not None:
                    freezer.outcome = EffectError("no")
                case "lost" if freezer.work is None and freezer.held == MOUNTS and not waiting:
                    freezer.lose()
                    broken = True
                case "time" if service.deadline() is not None:
                    was = service.state
                    clock.now += service.deadline()
                    service.tick()
                    broken = broken or (was is BackupState.FROZEN and service.state is not was)
            assert freezer.idle or service.deadline() is not None, order
            assert freezer.idle or service.quiet, order
        for _ in range(10):  # the freezer does what it was told; nobody asks for it but the clock
            if service.deadline() is None:
                break
            freezer.outcome = True
            clock.now += service.deadline()
            service.tick()
        assert freezer.idle, order
        assert service.deadline() is None
        for kind, later in waiting:
            assert kind == "freeze" or status_of(later.resume()) in (Status.OK, Status.FAIL)


@pytest.mark.parametrize("why", ["the channel ends", "it took too long"])
def test_a_thaw_that_nobody_asked_for_goes_on_as_soon_as_it_can(why):
    """Not only at the moment that its Pending names: whoever looks at the descriptor would look all the time."""
    ready, wake = os.pipe()
    now = [50.0]
    freezer = ScriptedFreezer(lambda: now[0])
    service = Vss(freezer, max_frozen=5.0, monotonic=lambda: now[0])
    answer = service.respond(VssRequest(FREEZE))
    freezer.outcome = True
    now[0] += 1
    assert answer.resume().status == Status.OK
    freezer._pending = lambda work: Pending(lambda: freezer._go_on(work), now[0] + 1000, ready)
    if why == "the channel ends":
        service.reset()
    else:
        now[0] += 6
        service.tick()
    assert freezer.work == "thaw"
    assert service.watch() == ready
    freezer.outcome = True
    os.write(wake, b"x")
    service.tick()
    assert freezer.idle
    os.close(ready)
    os.close(wake)
