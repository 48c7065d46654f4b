# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest

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
from hvring.services import Fcopy
from hvring.services.fcopy import STEPS, CopyState

IDLE, COPYING, BROKEN = CopyState.IDLE, CopyState.COPYING, CopyState.BROKEN
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


def enter(state, ask, receiver):
    if state is not IDLE:
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
    assert set(STEPS) == set(itertools.product(CopyState, FcopyOperation))


@pytest.mark.parametrize(
    ("state", "operation", "status", "after", "aborted", "published"),
    [
        (IDLE, FcopyOperation.START, OK, COPYING, [], []),
        (IDLE, FcopyOperation.WRITE, FAIL, IDLE, [], []),
        (IDLE, FcopyOperation.COMPLETE, OK, IDLE, [], []),
        (IDLE, FcopyOperation.CANCEL, OK, IDLE, [], []),
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
    enter(state, ask, receiver)
    assert service.state is state
    assert ask(MESSAGES[operation]) == status
    assert service.state is after
    assert receiver.aborted == aborted
    assert list(receiver.files) == published


@pytest.mark.parametrize("state", CopyState)
@pytest.mark.parametrize("operation", [4, 9, 2**32 - 1])
def test_an_unknown_operation_fails_and_changes_nothing(state, operation, service, ask, receiver):
    enter(state, ask, receiver)
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
