# SPDX-License-Identifier: Apache-2.0
"""The list of disks in FREEZE, from the packet to the freezer."""

from __future__ import annotations

import struct

import pytest

from hvring.ic import Lun, MessageType, Status, VssFreeze, VssOperation, VssRequest
from hvring.services import Vss

ONE, TWO, THREE = (Lun(1, bytes(15) + bytes([n]), 0, 0, n) for n in (1, 2, 3))


class Freezer:
    ready = True
    frozen = False

    def __init__(self):
        self.asked = []

    def freeze(self, *named):
        self.asked.append(named)
        self.frozen = True

    def thaw(self):
        self.frozen = False


@pytest.fixture
def freezer():
    return Freezer()


@pytest.fixture
def freeze(packet, status_of):
    def send(service, *luns, body=None):
        body = VssFreeze(luns=luns).encode() if body is None else body
        return status_of(service.receive(packet(MessageType.VSS, body, (5, 0))))

    return send


def thaw(service):
    assert service.respond(VssRequest(VssOperation.THAW)).status == Status.OK


def test_the_disks_reach_the_freezer_where_they_are_wanted(freezer, freeze):
    assert freeze(Vss(freezer, only_named=True), ONE, TWO) == Status.OK
    assert freezer.asked == [((ONE, TWO),)]


def test_nobody_hears_of_them_otherwise(freezer, freeze):
    assert freeze(Vss(freezer), ONE) == Status.OK
    assert freezer.asked == [()]


@pytest.mark.parametrize(
    "body",
    [
        VssFreeze().encode(),
        VssFreeze(luns=(ONE,)).encode()[:32],
        VssFreeze(luns=(ONE,)).encode()[:6200],
        VssFreeze(luns=(ONE,)).encode()[:16] + struct.pack("<I", 261) + bytes(6240),
        VssFreeze(luns=(ONE,)).encode()[:16] + b"\xff" * 4 + bytes(6240),
    ],
)
def test_without_a_list_or_with_one_that_lies_all_is_frozen(freezer, freeze, body):
    assert freeze(Vss(freezer, only_named=True), body=body) == Status.OK
    assert freezer.asked == [((),)]


def test_a_message_of_hv_utils_has_no_list(freezer):
    service = Vss(freezer, only_named=True)
    assert service.respond(VssRequest(VssOperation.FREEZE)).status == Status.OK
    assert freezer.asked == [((),)]


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        ((ONE, TWO), (ONE, TWO), Status.OK),
        ((ONE, TWO), (TWO,), Status.OK),
        ((), (ONE,), Status.OK),
        ((), (), Status.OK),
        ((ONE,), (TWO,), Status.FAIL),
        ((ONE,), (ONE, THREE), Status.FAIL),
        ((ONE,), (), Status.FAIL),
    ],
)
def test_a_freeze_of_what_is_not_held_is_refused_and_ends_nothing(freezer, freeze, first, second, status):
    service = Vss(freezer, only_named=True)
    assert freeze(service, *first) == Status.OK
    assert freeze(service, *second) == status
    assert freezer.asked == [(first,)]
    assert freezer.frozen
    thaw(service)
    assert freeze(service, *second) == Status.OK
    assert freezer.asked == [(first,), (second,)]


def test_what_a_reload_says_counts_from_the_next_freeze_on(freezer, freeze):
    service = Vss(freezer)
    assert freeze(service, ONE) == Status.OK
    fresh = Freezer()
    service.adopt(Vss(fresh, only_named=True))
    assert freeze(service, TWO) == Status.OK  # all are held
    thaw(service)
    assert freeze(service, TWO) == Status.OK
    assert (freezer.asked, fresh.asked) == ([()], [((TWO,),)])
    thaw(service)
    service.adopt(Vss(freezer))
    assert freeze(service, ONE) == Status.OK
    assert freezer.asked == [(), ()]
