# SPDX-License-Identifier: Apache-2.0
"""IP settings of message version 5.0, byte by byte and both ways (PROTOCOL §4.4.6)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET6, inet_ntop

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring.errors import LyingLengthError, MessageError, ShortMessageError
from hvring.ic import KvpIpInfo, kvp_ip_binary

INFO = KvpIpInfo(
    4,
    1,
    "00:15:5D:01:02:03",
    3,
    1,
    "192.0.2.7;198.51.100.7;2001:db8::7",
    "255.255.255.0;255.255.0.0;/64",
    "192.0.2.1;fe80::1",
    "192.0.2.53;2001:db8::53",
)


def test_each_field_is_where_the_table_has_it() -> None:
    body = kvp_ip_binary.encode(INFO)
    assert len(body) == 7428
    assert body[:4] == bytes([4, 1, 0, 0])
    assert struct.unpack_from("<6I", body, 4) == (2, 1, 1, 1, 1, 1)
    assert body[28:62] == "00:15:5D:01:02:03".encode("utf-16-le")
    assert body[284:288] == bytes([3, 1, 0, 0])
    for at, address in (
        (288, "192.0.2.7"),
        (292, "198.51.100.7"),
        (1568, "255.255.255.0"),
        (1572, "255.255.0.0"),
        (2080, "192.0.2.1"),
        (2180, "192.0.2.53"),
    ):
        assert body[at : at + 4] == IPv4Address(address).packed
    for at, address in ((544, "2001:db8::7"), (2100, "fe80::1"), (2436, "2001:db8::53")):
        assert body[at : at + 16] == IPv6Address(address).packed
    assert struct.unpack_from("<I", body, 1824) == (64,)
    assert struct.unpack_from("<4H", body, 3460) == (1, 1, 0, 0)
    assert not any(body[3716:])
    assert kvp_ip_binary.decode(body) == kvp_ip_binary.decode(body[:3716]) == INFO


v4 = st.ip_addresses(v=4).map(str)
v6 = st.ip_addresses(v=6).map(lambda address: inet_ntop(AF_INET6, address.packed))
masks = st.integers(0, 32).map(lambda bits: str(IPv4Address((0xFFFFFFFF << (32 - bits)) & 0xFFFFFFFF)))
prefixes = st.integers(0, 128).map("/{}".format)


@given(
    fours=st.lists(st.tuples(v4, masks), max_size=64),
    sixes=st.lists(st.tuples(v6, prefixes), max_size=64),
    gateways=st.tuples(st.lists(v4, max_size=5), st.lists(v6, max_size=5)),
    dns=st.tuples(st.lists(v4, max_size=64), st.lists(v6, max_size=64)),
    numbers=st.tuples(*[st.integers(0, 255)] * 4),
)
def test_what_is_encoded_is_decoded(fours, sixes, gateways, dns, numbers) -> None:  # type: ignore[no-untyped-def]
    operation, pool, family, dhcp = numbers
    pairs = fours + sixes
    info = KvpIpInfo(
        operation,
        pool,
        "{guid}",
        family,
        dhcp,
        ";".join(a for a, _ in pairs),
        ";".join(m for _, m in pairs),
        ";".join(gateways[0] + gateways[1]),
        ";".join(dns[0] + dns[1]),
    )
    assert kvp_ip_binary.decode(kvp_ip_binary.encode(info)) == info


def test_more_than_there_is_room_for_is_left_out() -> None:
    many = ";".join(f"10.0.0.{n}" for n in range(1, 101))
    info = KvpIpInfo(4, 1, "x", 1, 0, many, ";".join(["255.0.0.0"] * 100), many, many)
    found = kvp_ip_binary.decode(kvp_ip_binary.encode(info))
    assert [len(t.split(";")) for t in (found.addresses, found.subnets, found.gateways, found.dns)] == [
        64,
        64,
        5,
        64,
    ]


@pytest.mark.parametrize(
    ("at", "raw", "error"),
    [
        (4, b"\x41\0\0\0", LyingLengthError),
        (8, b"\xff\xff\xff\xff", LyingLengthError),
        (12, b"\x06\0\0\0", LyingLengthError),
        (16, b"\x06\0\0\0", LyingLengthError),
        (20, b"\x41\0\0\0", LyingLengthError),
        (24, b"\x41\0\0\0", LyingLengthError),
        (28, b"\x00\xdc", MessageError),
        (1824, b"\x81\0\0\0", MessageError),
    ],
)
def test_lies_are_refused(at: int, raw: bytes, error: type[Exception]) -> None:
    body = kvp_ip_binary.encode(INFO)
    with pytest.raises(error):
        kvp_ip_binary.decode(body[:at] + raw + body[at + len(raw) :])


@given(raw=st.binary(max_size=3800), fill=st.integers(0, 255))
def test_any_bytes_are_settings_or_a_message_error(raw: bytes, fill: int) -> None:
    for body in (raw, raw.ljust(7428, bytes([fill]))):
        try:
            kvp_ip_binary.decode(body)
        except MessageError:
            pass


def test_a_short_one_is_short() -> None:
    with pytest.raises(ShortMessageError):
        kvp_ip_binary.decode(bytes(3715))
    with pytest.raises(ValueError, match="no address"):
        kvp_ip_binary.encode(KvpIpInfo(5, 1, "x", addresses="nonsense", subnets="255.0.0.0"))
