# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import os
import time

import pytest

from hvring.errors import EffectError
from hvring.events import EventKind
from hvring.ic import (
    CancelCopy,
    CompleteCopy,
    FcopyFlag,
    FcopyOperation,
    MessageType,
    StartCopy,
    Status,
    WriteChunk,
)
from hvring.news import BURST
from hvring.pending import Pending, settle
from hvring.reasons import Reason
from hvring.services import Fcopy, fcopy
from hvring.services.base import Response
from hvring.services.fcopy import STEPS, CopyState

IDLE, STARTING = CopyState.IDLE, CopyState.STARTING
COPYING, BROKEN = CopyState.COPYING, CopyState.BROKEN
OK, FAIL = Status.OK, Status.FAIL
MESSAGES = {
    FcopyOperation.START: StartCopy("new", "/dir"),
    FcopyOperation.WRITE: WriteChunk(0, b"data"),
    FcopyOperation.COMPLETE: CompleteCopy(),
    FcopyOperation.CANCEL: CancelCopy(),
}


@pytest.fixture
def service(receiver):
    return Fcopy(receiver)


@pytest.fixture
def ask(service, packet, status_of):
    def send(message):
        body = message if isinstance(message, bytes) else message.encode()
        return status_of(service.receive(packet(MessageType.FCOPY, body, (1, 1))))

    return send


def enter(state, ask, receiver, service):
    if state is STARTING:
        receiver.slow = True
        assert isinstance(service.handle(StartCopy("old", "/dir")), Pending)
        receiver.slow = False
    elif state is not IDLE:
        assert ask(StartCopy("old", "/dir")) == OK
    if state is BROKEN:
        receiver.room = 0
        assert ask(WriteChunk(0, b"x")) == Status.DISK_FULL
        receiver.room = 10**6


def test_a_file_arrives_whole(ask, receiver):
    data = bytes(range(256)) * 30
    assert ask(StartCopy("f.txt", "/dir", FcopyFlag.OVERWRITE, len(data))) == OK
    assert ask(WriteChunk(0, data[:6144])) == OK
    assert ask(WriteChunk(6144, data[6144:])) == OK
    assert receiver.files == {}
    assert ask(CompleteCopy()) == OK
    assert receiver.files == {"/dir/f.txt": data}


def test_the_table_has_a_step_for_every_state_and_operation():
    assert set(STEPS) == set(itertools.product(CopyState, (StartCopy, WriteChunk, CompleteCopy, CancelCopy)))


@pytest.mark.parametrize(
    ("state", "operation", "status", "after", "aborted", "published"),
    [
        (IDLE, FcopyOperation.START, OK, COPYING, [], []),
        (IDLE, FcopyOperation.WRITE, FAIL, IDLE, [], []),
        (IDLE, FcopyOperation.COMPLETE, OK, IDLE, [], []),
        (IDLE, FcopyOperation.CANCEL, OK, IDLE, [], []),
        (STARTING, FcopyOperation.START, OK, COPYING, [], []),
        (STARTING, FcopyOperation.WRITE, FAIL, STARTING, [], []),
        (STARTING, FcopyOperation.COMPLETE, FAIL, IDLE, [], []),
        (STARTING, FcopyOperation.CANCEL, OK, IDLE, [], []),
        (COPYING, FcopyOperation.START, OK, COPYING, ["/dir/old"], []),
        (COPYING, FcopyOperation.WRITE, OK, COPYING, [], []),
        (COPYING, FcopyOperation.COMPLETE, OK, IDLE, [], ["/dir/old"]),
        (COPYING, FcopyOperation.CANCEL, OK, IDLE, ["/dir/old"], []),
        (BROKEN, FcopyOperation.START, OK, COPYING, ["/dir/old"], []),
        (BROKEN, FcopyOperation.WRITE, OK, BROKEN, [], []),
        (BROKEN, FcopyOperation.COMPLETE, FAIL, IDLE, ["/dir/old"], []),
        (BROKEN, FcopyOperation.CANCEL, OK, IDLE, ["/dir/old"], []),
    ],
)
def test_a_message_does_what_the_state_asks_for(
    state, operation, status, after, aborted, published, service, ask, receiver
):
    enter(state, ask, receiver, service)
    assert service.state is state
    assert ask(MESSAGES[operation]) == status
    assert service.state is after
    assert receiver.aborted == aborted
    assert list(receiver.files) == published


@pytest.mark.parametrize("state", CopyState)
@pytest.mark.parametrize("operation", [4, 9, 2**32 - 1])
def test_an_unknown_operation_fails_and_changes_nothing(state, operation, service, ask, receiver):
    enter(state, ask, receiver, service)
    assert ask(operation.to_bytes(4, "little") + bytes(32)) == FAIL
    assert service.state is state
    assert service.counters.unknown_operation == 1


@pytest.mark.parametrize(
    ("flags", "seen"), [(0, (False, False)), (1, (True, False)), (2, (False, True)), (3, (True, True))]
)
def test_the_flags_reach_the_receiver(flags, seen, ask, receiver):
    ask(StartCopy("f", "/dir", flags, 12345))
    assert receiver.started == [(*seen, 12345)]


def test_a_file_that_exists_is_not_overwritten_unasked(service, ask, receiver):
    receiver.files["/dir/f"] = b"old"
    assert ask(StartCopy("f", "/dir")) == Status.ALREADY_EXISTS
    assert service.state is IDLE
    assert ask(WriteChunk(0, b"x")) == FAIL
    assert receiver.files == {"/dir/f": b"old"}


def test_a_full_disk_is_named(ask, receiver):
    receiver.room = 3
    ask(StartCopy("f", "/dir"))
    assert ask(WriteChunk(0, b"abcd")) == Status.DISK_FULL


@pytest.mark.parametrize(
    ("offset", "size_field", "sent"),
    [(0, 6145, 6144), (0, 2**32 - 1, 6144), (0, 105, 100), (-1, 10, 10), (2**63 - 5, 10, 10)],
)
def test_a_write_that_lies_writes_nothing_and_spoils_the_copy(
    offset, size_field, sent, service, ask, receiver
):
    ask(StartCopy("f", "/dir"))
    body = bytearray(WriteChunk(0, bytes(sent)).encode()[: 52 + sent])
    body[40:48] = offset.to_bytes(8, "little", signed=True)
    body[48:52] = size_field.to_bytes(4, "little")
    assert ask(bytes(body)) == FAIL
    assert service.state is BROKEN
    assert ask(CompleteCopy()) == FAIL
    assert receiver.files == {}


def test_a_short_start_fails_and_ends_the_copy_before_it(service, ask, receiver):
    ask(StartCopy("old", "/dir"))
    assert ask(StartCopy("new", "/dir").encode()[:36]) == FAIL
    assert service.state is IDLE
    assert receiver.aborted == ["/dir/old"]


def test_a_file_that_cannot_be_published_is_a_failure(service, ask, receiver):
    receiver.broken = True
    ask(StartCopy("f", "/dir"))
    assert ask(CompleteCopy()) == FAIL
    assert service.state is IDLE


def test_a_reset_removes_the_partial_file(service, ask, receiver):
    ask(StartCopy("f", "/dir"))
    service.reset()
    assert service.state is IDLE
    assert receiver.aborted == ["/dir/f"]
    service.reset()
    assert receiver.aborted == ["/dir/f"]


WHOLE = StartCopy("f", "/dir", size=12)


@pytest.mark.parametrize(
    ("size", "chunks"),
    [
        (12, [(0, 11)]),  # short
        (12, []),
        (12, [(0, 5), (6, 6)]),  # a hole
        (12, [(1, 11)]),
        (12, [(0, 8), (4, 4)]),  # enough bytes, but some of them twice
        (12, [(0, 13)]),  # more than announced
        (12, [(0, 12), (12, 1)]),
        (1, [(2**40, 1)]),
        (2**64 - 1, [(0, 12)]),
        (0, [(1, 5)]),  # nothing was announced: the first byte is missing
        (0, [(0, 5), (6, 1)]),
    ],
)
def test_a_file_that_is_not_whole_is_not_published(size, chunks, service, ask, receiver):
    assert ask(StartCopy("f", "/dir", size=size)) == OK
    for offset, count in chunks:
        ask(WriteChunk(offset, bytes(count)))
    assert ask(CompleteCopy()) == FAIL
    assert receiver.files == {}
    assert receiver.aborted == ["/dir/f"]
    assert service.state is IDLE


@pytest.mark.parametrize(
    ("size", "chunks"),
    [
        (0, []),
        (0, [(0, 5), (5, 1)]),
        (12, [(0, 12)]),
        (12, [(6, 6), (0, 6)]),  # in another order
        (12, [(0, 8), (6, 6)]),  # some bytes twice
        (12, [(8, 4), (0, 4), (4, 4), (12, 0)]),
    ],
)
def test_a_file_that_is_whole_is_published_in_whatever_order_it_came(size, chunks, service, ask, receiver):
    ask(StartCopy("f", "/dir", size=size))
    for offset, count in chunks:
        assert ask(WriteChunk(offset, bytes(count))) == OK
    assert ask(CompleteCopy()) == OK
    assert receiver.files == {"/dir/f": bytes(size or sum(count for _, count in chunks))}


def test_an_effect_may_take_its_time_at_every_step(service, receiver):
    receiver.slow = True
    for message in (WHOLE, WriteChunk(0, bytes(12)), CompleteCopy()):
        outcome = service.handle(message)
        assert isinstance(outcome, Pending)
        assert receiver.files == {}
        assert settle(outcome) == Response()
    assert receiver.files == {"/dir/f": bytes(12)}
    settle(service.handle(StartCopy("g", "/dir")))
    assert settle(service.handle(CancelCopy())) == Response()
    assert receiver.aborted == ["/dir/g"]


@pytest.mark.parametrize("next_message", list(MESSAGES.values()))
@pytest.mark.parametrize("step", [WHOLE, WriteChunk(0, bytes(12)), CompleteCopy(), CancelCopy()])
def test_a_message_that_does_not_wait_for_the_one_before_breaks_it_off_and_publishes_nothing(
    step, next_message, service, receiver
):
    if step is not WHOLE:
        settle(service.handle(WHOLE))
        if isinstance(step, CompleteCopy):
            settle(service.handle(WriteChunk(0, bytes(12))))
    receiver.slow = True
    outcome = service.handle(step)
    assert isinstance(outcome, Pending)
    receiver.slow = False
    answer = service.handle(next_message)
    if step is not WHOLE or not isinstance(next_message, WriteChunk):
        assert receiver.cancelled == 1
        with pytest.raises(EffectError, match="broken off"):
            outcome.resume()
    if isinstance(next_message, (WriteChunk, CompleteCopy)):
        assert answer.status == FAIL
    service.handle(CompleteCopy())
    assert set(receiver.files) <= {"/dir/new"}


def test_a_reset_while_an_effect_is_at_work_cancels_it(service, receiver):
    receiver.slow = True
    outcome = service.handle(WHOLE)
    service.reset()
    assert receiver.cancelled == 1
    assert service.state is IDLE
    with pytest.raises(EffectError):
        outcome.resume()


def test_a_step_that_fails_late_leads_where_one_does_that_fails_at_once(service, ask, receiver):
    receiver.slow = True
    receiver.files["/dir/f"] = b"old"
    with pytest.raises(EffectError):
        settle(service.handle(WHOLE))
    assert service.state is IDLE
    settle(service.handle(StartCopy("g", "/dir")))
    receiver.room = 0
    with pytest.raises(EffectError):
        settle(service.handle(WriteChunk(0, b"x")))
    assert service.state is BROKEN
    receiver.slow = False
    assert ask(CompleteCopy()) == FAIL
    assert receiver.files == {"/dir/f": b"old"}


def test_what_was_copied_is_told(service, ask):
    told = []
    service.on_event = told.append
    ask(StartCopy("f", "/dir", size=4))
    ask(WriteChunk(0, b"data"))
    ask(CompleteCopy())
    assert [event.kind for event in told] == [EventKind.ASKED, EventKind.COPIED]
    assert told[1].detail == "/dir/f, 4 bytes"


def test_pieces_are_limited_because_a_host_chooses_how_many_there_are(ask):
    ask(StartCopy("f", "/dir"))
    statuses = [ask(WriteChunk(2 * n, b"x")) for n in range(65)]
    assert statuses == [OK] * 64 + [FAIL]
    assert ask(CompleteCopy()) == FAIL


def test_each_copy_is_on_record_once_with_what_came_of_it(service, ask, receiver):
    told = []
    service.on_event = told.append

    def last() -> dict:
        return {name: value for name, value in told[-1].facts.items() if name != "remedy"}

    ask(StartCopy("f", "/dir", size=4, flags=FcopyFlag.OVERWRITE))
    ask(WriteChunk(0, b"data"))
    ask(CompleteCopy())
    asked = {"name": "f", "overwrite": True, "create_path": False}
    assert told[-1].kind is EventKind.COPIED
    assert (
        last().items() >= {**asked, "path": "/dir/f", "size": 4, "result": "copied", "sha256": None}.items()
    )
    assert last()["seconds"] >= 0

    ask(StartCopy("f", "/dir", size=4))  # it exists
    assert told[-1].kind is EventKind.FAILED
    assert last().items() >= {"path": "/dir", "name": "f", "reason": "already_exists", "bytes": 0}.items()

    receiver.room = 2
    ask(StartCopy("g", "/dir"))
    ask(WriteChunk(0, b"data"))
    ask(CompleteCopy())
    assert (told[-1].kind, last()["reason"]) == (EventKind.FAILED, "disk_full")
    assert [event.kind for event in told].count(EventKind.FAILED) == 2
    receiver.room = 10**6

    ask(StartCopy("g", "/dir"))
    ask(WriteChunk(0, b"data"))
    ask(CancelCopy())
    assert (told[-1].kind, last()["reason"], last()["bytes"]) == (EventKind.CANCELLED, "cancelled", 4)
    ask(StartCopy("g", "/dir"))
    ask(StartCopy("h", "/dir"))
    assert (told[-2].kind, told[-2].facts["reason"]) == (EventKind.CANCELLED, "broken_off")
    service.reset()
    assert (told[-1].kind, last()["name"], last()["reason"]) == (EventKind.CANCELLED, "h", "broken_off")
    assert service.counters.failures == {"already_exists": 1, "disk_full": 1, "cancelled": 1, "broken_off": 2}
    assert service.last_failure.over_at is None
    ask(StartCopy("h", "/dir"))
    ask(CompleteCopy())
    assert told[-1].kind is EventKind.COPIED


def test_a_host_that_copies_many_files_finds_each_on_record(service, ask):
    told = []
    service.on_event = told.append
    for n in range(3 * BURST):
        ask(StartCopy(f"f{n}", "/dir"))
        ask(CompleteCopy())
        ask(StartCopy(f"f{n}", "/dir"))
    kinds = [event.kind for event in told]
    assert kinds.count(EventKind.COPIED) == kinds.count(EventKind.FAILED) == 3 * BURST


class Sweeping:
    """A receiver that has something to sweep, which takes its time."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.asked = 0
        self.ready, self.tell = os.pipe()

    def sweep(self):
        self.asked += 1
        return Pending(self._resume, time.monotonic() + 60, self.ready)

    def _resume(self):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def close(self):
        os.close(self.ready)
        os.close(self.tell)


@pytest.mark.parametrize("outcome", [0, 3, EffectError("it hangs", reason=Reason.FILE_SYSTEM_HANGS)])
def test_what_earlier_copies_left_is_swept_once_after_the_start(outcome, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(fcopy.time, "monotonic", lambda: now[0])
    receiver = Sweeping(outcome)
    service, told = Fcopy(receiver), []
    service.on_event = told.append
    assert service.deadline() is None
    service.tick()
    assert (receiver.asked, service.watch()) == (0, -1)
    assert service.deadline() == pytest.approx(fcopy.SWEEP_AFTER)
    now[0] += fcopy.SWEEP_AFTER
    for _ in range(3):
        service.tick()
        assert (receiver.asked, service.watch()) == (1, receiver.ready)
    assert 0 < service.deadline() <= 60
    os.write(receiver.tell, b"x")
    service.tick()
    assert (receiver.asked, service.watch(), service.deadline()) == (1, -1, None)
    kinds = [event.kind for event in told]
    assert kinds == {0: [], 3: [EventKind.CHANGED]}.get(outcome, [EventKind.FAILED])
    if outcome == 3:
        assert told[0].facts == {"removed": 3}
    now[0] += 10**6
    service.tick()
    assert receiver.asked == 1
    service.adopt(Fcopy(Sweeping(0)))  # other directories
    assert service.deadline() == pytest.approx(fcopy.SWEEP_AFTER)
    receiver.close()


def test_a_copy_whose_process_is_lost_is_swept_after(ask, receiver, service, monkeypatch):
    """What that could not take back, the next sweep does."""
    assert service.deadline() is None  # a receiver that leaves nothing has nothing to sweep
    receiver.sweep = lambda: 0
    ask(StartCopy("f", "/dir"))
    service.note("write", EffectError("gone", reason=Reason.WORKER_LOST))
    assert service.deadline() == pytest.approx(fcopy.LOST_SWEEP_AFTER, abs=1)
    monkeypatch.setattr(fcopy, "LOST_SWEEP_AFTER", 0.0)
    ask(StartCopy("f", "/dir"))
    service.note("write", EffectError("full", Status.DISK_FULL))
    assert service.deadline() > 1
