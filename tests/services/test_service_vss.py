# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from hvring import ic
from hvring.ic import MessageType, NegotiateRequest, Status, Version, VssFlags, VssOperation, VssRequest
from hvring.services import Vss
from hvring.services.vss import MAX_FROZEN, RETRY

FREEZE, THAW, HOT_BACKUP = VssOperation.FREEZE, VssOperation.THAW, VssOperation.HOT_BACKUP


@pytest.fixture
def service(freezer, monotonic):
    return Vss(freezer, monotonic=monotonic)


@pytest.fixture
def ask(service, packet, status_of):
    def send(operation, data=b"\xee" * 24):
        return status_of(
            service.receive(packet(MessageType.VSS, VssRequest(operation, data).encode(), (5, 0)))
        )

    return send


def test_freeze_holds_until_thaw(service, ask, freezer):
    assert service.deadline() is None
    assert ask(FREEZE) == Status.OK
    assert freezer.frozen
    assert service.frozen
    assert service.deadline() == MAX_FROZEN
    assert ask(THAW) == Status.OK
    assert not freezer.frozen
    assert service.deadline() is None
    assert freezer.calls == ["freeze", "thaw"]


def test_a_freeze_of_the_real_size_works(service, packet, status_of, freezer):
    body = ic.VssFreeze(luns=(ic.Lun(1, bytes(16), 1, 2, 3),)).encode()
    assert status_of(service.receive(packet(MessageType.VSS, body))) == Status.OK
    assert freezer.frozen


def test_a_second_freeze_is_fine_and_changes_nothing(service, ask, freezer, monotonic):
    ask(FREEZE)
    monotonic.now += 10
    assert ask(FREEZE) == Status.OK
    assert freezer.calls == ["freeze"]
    assert service.deadline() == MAX_FROZEN - 10


def test_thaw_while_thawed_is_fine(ask, freezer):
    assert ask(HOT_BACKUP) == Status.OK
    assert ask(THAW) == Status.OK
    assert freezer.calls == []


def test_a_thaw_of_a_freeze_that_was_another_process_s_is_not_ok(service, ask, freezer):
    """Whoever crashed amid a backup may be back before THAW; over hv_utils' device the host sees nothing of it."""
    assert ask(THAW) == Status.FAIL
    assert service.counters.effect_errors == 1
    assert ask(THAW) == Status.OK  # it was said
    assert freezer.calls == []


@pytest.mark.parametrize("state", ["frozen", "thawed", "not to be thawed"])
def test_a_thaw_behind_a_new_channel_is_not_ok_whatever_is_left_of_the_freeze(state, service, ask, freezer):
    assert ask(FREEZE) == Status.OK
    if state == "thawed":
        assert ask(THAW) == Status.OK
    if state == "not to be thawed":
        freezer.broken.add("thaw")
    service.reset()
    freezer.broken.clear()
    assert ask(THAW) == Status.FAIL
    assert not freezer.frozen
    assert ask(FREEZE) == Status.OK
    assert ask(THAW) == Status.OK


def test_without_a_ready_freezer_backup_and_freeze_are_refused_and_the_rest_is_not(ask, freezer):
    freezer.ready = False
    assert ask(HOT_BACKUP) == Status.FAIL
    assert ask(FREEZE) == Status.FAIL
    assert ask(VssOperation.GET_DM_INFO) == Status.OK
    assert ask(VssOperation.BACKUP_COMPLETE) == Status.OK
    assert ask(THAW) == Status.OK
    assert freezer.calls == []


def test_a_freeze_that_fails_says_so_and_holds_nothing(service, ask, freezer):
    freezer.broken.add("freeze")
    assert ask(FREEZE) == Status.FAIL
    assert service.deadline() is None
    assert service.counters.effect_errors == 1


def test_a_freeze_that_is_not_thawed_in_time_is_thawed(service, ask, freezer, monotonic):
    ask(FREEZE)
    monotonic.now += MAX_FROZEN - 1
    service.tick()
    assert freezer.frozen
    assert service.deadline() == 1
    monotonic.now += 1
    assert service.deadline() == 0
    service.tick()
    assert not freezer.frozen
    assert service.deadline() is None


def test_the_host_hears_once_that_the_freeze_did_not_hold(service, ask, monotonic):
    ask(FREEZE)
    monotonic.now += MAX_FROZEN
    service.tick()
    assert ask(THAW) == Status.FAIL
    assert ask(THAW) == Status.OK
    assert (ask(FREEZE), ask(THAW)) == (Status.OK, Status.OK)


def test_a_new_freeze_forgets_the_old_ones_fate(service, ask, monotonic):
    ask(FREEZE)
    monotonic.now += MAX_FROZEN
    service.tick()
    assert (ask(FREEZE), ask(THAW)) == (Status.OK, Status.OK)


def test_how_long_a_freeze_may_last_can_be_chosen(freezer, monotonic, packet):
    service = Vss(freezer, max_frozen=5, monotonic=monotonic)
    service.receive(packet(MessageType.VSS, VssRequest(FREEZE).encode()))
    assert service.deadline() == 5


def test_a_reset_thaws(service, ask, freezer):
    ask(FREEZE)
    service.reset()
    assert not freezer.frozen
    assert service.deadline() is None
    assert ask(THAW) == Status.FAIL  # it did not hold until now
    assert ask(THAW) == Status.OK


def test_a_reset_without_a_freeze_thaws_nothing(service, freezer):
    service.reset()
    assert freezer.calls == []


def test_a_thaw_that_fails_is_tried_again_soon(service, ask, freezer, monotonic):
    ask(FREEZE)
    freezer.broken.add("thaw")
    assert ask(THAW) == Status.FAIL
    assert service.deadline() == RETRY
    monotonic.now += RETRY
    service.tick()
    assert service.deadline() == RETRY
    freezer.broken.clear()
    monotonic.now += RETRY
    service.tick()
    assert not freezer.frozen
    assert service.deadline() is None


def test_a_thaw_that_came_too_late_for_the_freezer_is_reported(service, ask, freezer):
    ask(FREEZE)
    freezer.broken.add("thaw")
    freezer.frozen = False  # a guardian has thawed already, and thaw() tells
    assert ask(THAW) == Status.FAIL
    assert service.deadline() is None


def test_negotiating_again_keeps_the_freeze(service, ask, freezer, packet):
    ask(FREEZE)
    service.receive(
        packet(MessageType.NEGOTIATE, NegotiateRequest((Version(3, 0),), (Version(5, 0),)).encode())
    )
    assert freezer.frozen
    assert ask(THAW) == Status.OK


@pytest.mark.parametrize(("flags", "told"), [((), 5), ((0,), 0), ((2**32 - 1,), 2**32 - 1)])
def test_hot_backup_says_what_this_machine_can_and_leaves_the_rest_alone(freezer, packet, flags, told):
    request = packet(MessageType.VSS, VssRequest(HOT_BACKUP, b"\xee" * 24).encode())
    reply = Vss(freezer, *flags).receive(request)
    assert VssFlags.decode(reply.payload[28:]).flags == told
    assert reply.payload[28:36] == request[28:36]
    assert reply.payload[40:] == request[40:]


def test_hot_backup_leaves_the_hosts_flags_alone_if_told_to_or_if_there_is_no_backup(freezer, packet):
    request = packet(MessageType.VSS, VssRequest(HOT_BACKUP, b"\xee" * 24).encode())
    assert Vss(freezer, None).receive(request).payload[28:] == request[28:]
    freezer.ready = False
    assert Vss(freezer).receive(request).payload[28:] == request[28:]


@pytest.mark.parametrize("flags", [-1, 2**32])
def test_flags_that_cannot_be_told_are_refused(freezer, flags):
    with pytest.raises(ValueError, match="32 bits"):
        Vss(freezer, flags)


def test_get_dm_info_has_no_flags(service, packet):
    request = packet(MessageType.VSS, VssRequest(VssOperation.GET_DM_INFO, b"\xee" * 24).encode())
    reply = service.receive(request)
    assert VssFlags.decode(reply.payload[28:]).flags == 0
    assert reply.payload[40:] == request[40:]


@pytest.mark.parametrize("operation", [0, 1, 4, 7, 8, 0x7F, 255])
def test_every_other_operation_is_echoed_as_fine(operation, service, packet, freezer):
    request = packet(MessageType.VSS, VssRequest(operation, b"\xee" * 24).encode())
    assert service.receive(request).payload == request[:25] + b"\5" + request[26:]
    assert service.counters.unknown_operation == (operation > 8)
    assert freezer.calls == []
