# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import pytest

from hvring import ic
from hvring.errors import EffectError
from hvring.guest.network import IpInfo
from hvring.ic import KvpOperation, MessageType, Status, ValueType
from hvring.pending import Pending
from hvring.services import Kvp

KVP = MessageType.KVP
MAC = "00:15:5D:01:02:03"
INFO = IpInfo(3, True, "192.0.2.7;fe80::1", "255.255.255.0;/64", "192.0.2.1;", "192.0.2.53;")


@pytest.fixture
def ask(store, packet):
    service = Kvp(store)

    def send(message):
        body = message if isinstance(message, bytes) else message.encode()
        return service.receive(packet(KVP, body, (4, 0)))

    send.service = service
    return send


def body_of(reply):
    return reply.payload[28:]


@pytest.mark.parametrize("pool", range(5))
def test_what_was_set_is_got_and_deleted_again(pool, ask, status_of):
    assert status_of(ask(ic.KvpSet(pool, "n\u00e4me", "\u20ac \U0001f680"))) == Status.OK
    reply = ask(ic.KvpGet(pool, "n\u00e4me"))
    assert ic.KvpValue.decode(body_of(reply)) == ic.KvpValue(pool, "n\u00e4me", "\u20ac \U0001f680")
    assert status_of(ask(ic.KvpDelete(pool, "n\u00e4me"))) == Status.OK
    assert status_of(ask(ic.KvpGet(pool, "n\u00e4me"))) == Status.NO_MORE_ITEMS
    assert status_of(ask(ic.KvpDelete(pool, "n\u00e4me"))) == Status.NO_MORE_ITEMS


@pytest.mark.parametrize(
    ("value", "value_type", "stored"),
    [
        ("text", ValueType.SZ, "text"),
        ("%TEMP%", ValueType.EXPAND_SZ, "%TEMP%"),
        (0xDEADBEEF, ValueType.U32, "3735928559"),
        (2**64 - 2, ValueType.U64_LINUX, "18446744073709551614"),
        (5, ValueType.U64, "5"),
        ("", ValueType.SZ, ""),
    ],
)
def test_values_are_stored_as_text(value, value_type, stored, ask, store, packet):
    request = ic.KvpSet(0, "k", value, value_type)
    assert ask(request).payload[28:] == request.encode()  # an echo
    assert store.pools[0] == {"k": stored}


def test_enumeration_goes_through_a_pool_until_it_ends(ask, store, status_of):
    store.pools[1] = {"a": "1", "b": "2"}
    items = [ic.KvpItem.decode(body_of(ask(ic.KvpEnumerate(1, i)))) for i in (0, 1)]
    assert items == [ic.KvpItem(1, 0, "a", "1"), ic.KvpItem(1, 1, "b", "2")]
    request = ic.KvpEnumerate(1, 2)
    end = ask(request)
    assert status_of(end) == Status.NO_MORE_ITEMS
    assert body_of(end) == request.encode()  # untouched


def test_the_automatic_pool_is_the_stores_facts(ask, store, status_of):
    assert ic.KvpItem.decode(body_of(ask(ic.KvpEnumerate(2, 1)))).key == "OSMajorVersion"
    assert status_of(ask(ic.KvpEnumerate(2, 2))) == Status.NO_MORE_ITEMS
    assert status_of(ask(ic.KvpEnumerate(2, 2**32 - 1))) == Status.NO_MORE_ITEMS
    assert ic.KvpValue.decode(body_of(ask(ic.KvpGet(2, "OSName")))).value == "Lab Linux"
    assert status_of(ask(ic.KvpGet(2, "other"))) == Status.NO_MORE_ITEMS


def test_items_too_long_for_a_message_are_cut_and_not_the_end_of_the_list(ask, store):
    store.pools[1] = {"k" * 300: "v" * 2000}
    item = ic.KvpItem.decode(body_of(ask(ic.KvpEnumerate(1, 0))))
    assert (item.key, item.value) == ("k" * 255, "v" * 1023)


def test_the_longest_key_and_value_fit(ask, store):
    ask(ic.KvpSet(0, "k" * 255, "v" * 1023))
    item = ic.KvpItem.decode(body_of(ask(ic.KvpEnumerate(0, 0))))
    assert (item.key, item.value) == ("k" * 255, "v" * 1023)


@pytest.mark.parametrize("pool", [5, 7, 255])
@pytest.mark.parametrize(
    "make", [ic.KvpGet, lambda p, k: ic.KvpSet(p, k, "v"), ic.KvpDelete, lambda p, _: ic.KvpEnumerate(p, 0)]
)
def test_a_pool_that_is_not_there_has_no_items(pool, make, ask, store, status_of):
    assert status_of(ask(make(pool, "k"))) == Status.NO_MORE_ITEMS
    assert store.pools == [{}] * 5


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EffectError("unreadable"), Status.FAIL),
        (EffectError("full", Status.DISK_FULL), Status.DISK_FULL),
        (ValueError("too long"), Status.FAIL),
    ],
)
@pytest.mark.parametrize(
    "message", [ic.KvpGet(0, "k"), ic.KvpSet(0, "k", "v"), ic.KvpDelete(0, "k"), ic.KvpEnumerate(0, 0)]
)
def test_a_store_that_fails_is_not_an_empty_one(error, status, message, ask, store, status_of):
    store.error = error
    assert status_of(ask(message)) == status
    assert ask.service.last_error is error


def test_a_store_that_breaks_is_a_failure_and_nothing_is_raised(ask, store, status_of):
    store.error = RuntimeError("bug")
    assert status_of(ask(ic.KvpGet(0, "k"))) == Status.FAIL


def test_get_ip_fills_in_the_settings(ask, store, status_of):
    store.adapters[MAC] = INFO
    garbage = bytearray(ic.KvpIpInfo(KvpOperation.GET_IP, 1, MAC).encode())
    garbage[258:] = b"\0\xdc" * ((len(garbage) - 258) // 2)
    reply = ask(bytes(garbage))
    assert status_of(reply) == Status.OK
    assert ic.KvpIpInfo.decode(body_of(reply)) == ic.KvpIpInfo(
        KvpOperation.GET_IP, 1, MAC, 3, 1, INFO.addresses, INFO.subnets, INFO.gateways, INFO.dns
    )


def test_get_ip_of_an_unknown_adapter_fails(ask, status_of):
    assert status_of(ask(ic.KvpIpInfo(KvpOperation.GET_IP, 1, MAC))) == Status.FAIL


def test_lists_too_long_for_their_field_are_cut(ask, store):
    store.adapters[MAC] = IpInfo(1, False, "1" * 3000, "2" * 3000, "3" * 3000, "4" * 3000)
    found = ic.KvpIpInfo.decode(body_of(ask(ic.KvpIpInfo(KvpOperation.GET_IP, 1, MAC))))
    assert [len(x) for x in (found.addresses, found.subnets, found.gateways, found.dns)] == [
        1023,
        1023,
        511,
        1023,
    ]


@pytest.mark.parametrize(("known", "status"), [(True, Status.NOT_SUPPORTED), (False, Status.NOT_FOUND)])
def test_set_ip_is_refused(known, status, ask, store, status_of):
    guid = "{11111111-2222-3333-4444-555555555555}"
    if known:
        store.guids.add(guid)
    assert status_of(ask(ic.KvpIpInfo(KvpOperation.SET_IP, 1, guid, 1))) == status


@pytest.mark.parametrize("operation", [KvpOperation.GET_IP, KvpOperation.SET_IP])
def test_a_store_that_fails_over_ip_settings_says_its_status(operation, ask, store, status_of):
    store.error = EffectError("no", Status.INVALID_ARG)
    assert status_of(ask(ic.KvpIpInfo(operation, 1, MAC))) == Status.INVALID_ARG


@pytest.mark.parametrize("operation", [6, 9, 100, 255])
def test_an_unknown_operation_is_not_supported(operation, ask, status_of):
    assert status_of(ask(struct.pack("<BB", operation, 0) + bytes(2578))) == Status.NOT_SUPPORTED
    assert ask.service.counters.unknown_operation == 1


@pytest.mark.parametrize("status", [0, -1, 2**32])
def test_an_effect_cannot_make_a_failure_look_like_success(status, ask, store, status_of):
    store.error = EffectError("odd", status)
    assert status_of(ask(ic.KvpIpInfo(KvpOperation.GET_IP, 1, MAC))) == Status.FAIL


class Busy:
    """A store that another program uses for so many looks; ``last``: what the look after them gives."""

    def __init__(self, looks, last):
        self.looks, self.last, self.cancelled = looks, last, False

    def prepare(self):
        pass

    def get(self, pool, key):
        if self.looks:
            self.looks -= 1
            return Pending(lambda: self.get(pool, key), 7.5, 99, self.cancel)
        return self.last()

    def cancel(self):
        self.cancelled = True


def begun(store, packet):
    service = Kvp(store)
    return service, service.receive(packet(KVP, ic.KvpGet(0, "k").encode(), (4, 0)))


def test_a_store_in_use_is_asked_again_and_the_request_counts_once(packet, status_of):
    service, answer = begun(Busy(3, lambda: "v"), packet)
    for _ in range(2):
        assert (answer.at, answer.descriptor) == (7.5, 99)
        answer = answer.resume()
    assert service.counters.as_dict()["replies"] == 0
    answer = answer.resume()
    assert status_of(answer) == Status.OK
    assert ic.KvpValue.decode(body_of(answer)).value == "v"
    counters = service.counters
    assert (counters.requests, counters.replies, counters.failed, counters.effect_errors) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("error", "status"),
    [(EffectError("in use", Status.DISK_FULL), Status.DISK_FULL), (RuntimeError("bug"), Status.FAIL)],
)
def test_a_store_that_fails_when_it_is_asked_again_is_answered_too(error, status, packet, status_of):
    def fail():
        raise error

    service, answer = begun(Busy(2, fail), packet)
    answer = answer.resume().resume()
    assert status_of(answer) == status
    assert service.last_error is error
    assert (service.counters.requests, service.counters.failed) == (1, 1)


def test_a_request_that_nobody_waits_for_any_more_is_cancelled(packet):
    store = Busy(1, lambda: "v")
    _, answer = begun(store, packet)
    answer.cancel()
    assert store.cancelled


def test_another_transport_enters_between_messages(store):
    service = Kvp(store)
    assert service.handle(ic.KvpSet(1, "k", "v")).status == Status.OK
    assert service.handle(ic.KvpGet(1, "k")).message == ic.KvpValue(1, "k", "v")
    assert service.handle(ic.KvpEnumerate(1, 1)).status == Status.NO_MORE_ITEMS


def test_pools_that_cannot_be_made_are_told_once_tried_again_and_served(store, packet, monotonic, status_of):
    store.unprepared = EffectError("a read-only file system")
    told = []
    service = Kvp(store, monotonic=monotonic)
    service.on_event = told.append
    store.pools[1]["k"] = "v"

    def ask():
        service.tick()
        return status_of(service.receive(packet(KVP, ic.KvpGet(1, "k").encode(), (4, 0))))

    assert store.prepared == 0  # making the service touches nothing
    assert [ask(), ask()] == [Status.OK] * 2
    assert [str(event) for event in told] == ["kvp: failed making the pools: a read-only file system"]
    assert service.deadline() == 60
    monotonic.now += 60
    assert ask() == Status.OK
    assert (store.prepared, len(told)) == (2, 1)
    store.unprepared = None
    monotonic.now += 60
    assert [ask(), ask()] == [Status.OK] * 2
    assert (store.prepared, service.deadline()) == (3, None)


def test_text_that_is_no_unicode_is_shown_and_not_the_end_of_the_list(ask, store):
    store.pools[1] = {"caf\udce9": "l1 \udce9"}
    item = ic.KvpItem.decode(body_of(ask(ic.KvpEnumerate(1, 0))))
    assert (item.key, item.value) == ("caf\ufffd", "l1 \ufffd")
