# SPDX-License-Identifier: Apache-2.0
"""The model of hv_utils against what was seen of kernel 6.1.176 (and 6.12.117 where it differs), PROTOCOL §10."""

from __future__ import annotations

import errno
import select
import struct
from collections.abc import Callable

import pytest
from hv_utils_model import DEBIAN_12, DEBIAN_13, FAIL, OLD, Blocks, File, HvUtils, Kernel, KernelBug, State
from hv_utils_model.packets import (
    REGISTRATIONS,
    changes,
    fcopy,
    fcopy_start,
    fcopy_write,
    kvp_delete,
    kvp_enumerate,
    kvp_ip,
    kvp_pair,
    message,
    negotiation,
    packet,
    status_of,
    utf16,
    vss,
)

Load = Callable[[Kernel], HvUtils]
NAMES = ("kvp", "vss", "fcopy")
SUPPORTED = {"kvp": ((3, 0), (4, 0), (5, 0)), "vss": ((4, 0), (5, 0), (6, 0)), "fcopy": ((1, 1),)}


def fails(number: int, call: Callable[..., object], *arguments: object) -> bool:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        call(*arguments)
    return caught.value.errno == number


def registered(kernel: HvUtils, name: str) -> File:
    file = kernel.open(name)
    file.write(REGISTRATIONS[name])
    file.read(8192)
    return file


def ask(kernel: HvUtils, name: str, file: File, request: bytes, answer: bytes) -> tuple[bytes, bytes]:
    """One request and its answer: what was handed out, and what the host saw."""
    before = len(kernel[name].answers)
    kernel[name].host_sends(request)
    seen = file.read(8192)
    file.write(answer)
    (told,) = kernel[name].answers[before:]
    return seen, told


def hexed(data: bytes) -> str:
    return data.rstrip(b"\0").hex()


# ----------------------------------------------------------------------------- the file


@pytest.mark.parametrize("name", NAMES)
def test_a_second_open_is_refused_until_the_first_is_closed(kernel: HvUtils, name: str) -> None:
    file = kernel.open(name)
    assert fails(errno.EBUSY, kernel.open, name)
    file.close()
    kernel.open(name)


@pytest.mark.parametrize("name", NAMES)
def test_reading_nothing_waits_in_the_kernel(kernel: HvUtils, name: str) -> None:
    with pytest.raises(Blocks):
        kernel.open(name).read(8192)
    assert kernel[name].blocked_reads == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_message_wakes_epoll_and_stays_when_the_buffer_is_too_short(kernel: HvUtils, name: str) -> None:
    file = kernel.open(name)
    epoll = select.epoll()
    epoll.register(file.fileno(), select.EPOLLIN)
    assert epoll.poll(0) == []
    file.write(REGISTRATIONS[name])
    assert epoll.poll(0) == [(file.fileno(), select.EPOLLIN)]
    size = {"kvp": 7432, "vss": 4, "fcopy": 4}[name]
    assert fails(errno.EINVAL, file.read, size - 1)
    assert file.poll() == select.POLLIN
    assert len(file.read(size)) == size
    assert (file.poll(), epoll.poll(0)) == (0, [])


@pytest.mark.parametrize("name", NAMES)
def test_unbinding_waits_for_the_close(kernel: HvUtils, name: str) -> None:
    file = registered(kernel, name)
    device = kernel[name]
    assert not device.unbind()
    poll = select.poll()
    poll.register(file.fileno(), 0)
    assert poll.poll(0)[0][1] & select.POLLHUP
    assert file.poll() == 0x18
    assert fails(errno.EBADF, file.read, 8192)
    assert fails(errno.EBADF, file.write, bytes(7432))
    assert fails(errno.EBADF, kernel.open, name)
    assert f"hv_{name}" in kernel.nodes()
    assert device.channel_open
    file.close()
    assert f"hv_{name}" not in kernel.nodes()
    assert not device.channel_open
    assert fails(errno.ENOENT, kernel.open, name)
    device.bind()
    device.host_sends(negotiation(*SUPPORTED[name]))
    registered(kernel, name)
    assert status_of(device.answers[-1]) == 0


def test_unbinding_in_a_transaction_leaves_the_host_without_an_answer(kernel: HvUtils) -> None:
    file = registered(kernel, "vss")
    kernel["vss"].host_sends(vss(6))
    kernel["vss"].unbind()
    kernel.advance(1000)
    file.close()
    assert kernel["vss"].answers == []


def test_without_an_open_file_unbinding_does_not_wait(kernel: HvUtils) -> None:
    assert kernel["vss"].unbind()
    assert kernel.nodes() == {"hv_kvp", "hv_fcopy"}


def test_newer_kernels_have_no_file_copy(load: Load) -> None:
    kernel = load(DEBIAN_13)
    assert kernel.nodes() == {"hv_kvp", "hv_vss"}
    assert fails(errno.ENOENT, kernel.open, "fcopy")


# ----------------------------------------------------------------------------- registration


def test_kvp_reads_nothing_before_the_answer_to_the_registration_was_read(kernel: HvUtils) -> None:
    device = kernel["kvp"]
    request = negotiation((3, 0), (4, 0), (5, 0))
    device.host_sends(request)
    file = kernel.open("kvp")
    for bad in (b"", bytes(7431), message(bytes([99])), message(bytes([3]))):
        assert fails(errno.EINVAL, file.write, bad)
    assert file.write(REGISTRATIONS["kvp"]) == 7432
    assert file.write(REGISTRATIONS["kvp"]) == 7432  # again, and it has no effect
    assert device.answers == []
    assert hexed(file.read(7432)) == "64000000332e31"
    (answer,) = device.answers
    assert changes(request, answer) == {0: "01000100000000000300000004"}
    assert fails(errno.EINVAL, file.write, REGISTRATIONS["kvp"])
    assert fails(errno.EINVAL, file.write, message())


def test_a_second_registration_is_an_error_on_newer_kernels(load: Load) -> None:
    file = load(DEBIAN_13).open("kvp")
    file.write(REGISTRATIONS["kvp"])
    assert fails(errno.EFAULT, file.write, REGISTRATIONS["kvp"])


def test_vss_registers_again_when_it_pleases_but_not_in_a_transaction(kernel: HvUtils) -> None:
    device, file = kernel["vss"], kernel.open("vss")
    for bad in (bytes([129]) + bytes(10), bytes([129]) + bytes(12), bytes([100]) + bytes(11)):
        assert fails(errno.EINVAL, file.write, bad)
    file.write(REGISTRATIONS["vss"])
    assert fails(errno.EFAULT, file.write, REGISTRATIONS["vss"])
    assert file.read(4).hex() == "81000000"
    file.write(REGISTRATIONS["vss"])
    assert file.read(12).hex() == "81000000"
    file.write(bytes([128]) + bytes(11))  # the old way: no answer
    assert file.poll() == 0
    assert fails(errno.EINVAL, file.write, bytes(12))
    device.host_sends(vss(5))
    file.read(12)
    assert fails(errno.EINVAL, file.write, REGISTRATIONS["vss"])
    file.close()
    assert [status_of(a) for a in device.answers] == [FAIL]


def test_fcopy_registers_once(kernel: HvUtils) -> None:
    file = kernel.open("fcopy")
    for bad in (bytes(3), bytes(5), struct.pack("<I", 2)):
        assert fails(errno.EINVAL, file.write, bad)
    file.write(REGISTRATIONS["fcopy"])
    assert fails(errno.EFAULT, file.write, REGISTRATIONS["fcopy"])
    assert fails(errno.EINVAL, file.read, 3)
    assert file.read(4).hex() == "01000000"
    assert fails(errno.EINVAL, file.write, REGISTRATIONS["fcopy"])


def test_without_a_daemon_vss_and_fcopy_negotiate_and_fail(kernel: HvUtils) -> None:
    device = kernel["vss"]
    asked = (
        negotiation((4, 0), (5, 0), (6, 0)),
        vss(5),
        vss(2),
        vss(3, b"\xee" * 8),
        vss(5),
    )
    for request in asked:
        device.host_sends(request)
    told = [(status_of(a), changes(q, a)) for q, a in zip(asked, device.answers, strict=True)]
    assert told == [
        (0, {0: "01000100000000000300000005"}),
        (FAIL, {}),
        (FAIL, {}),
        (0, {8: ""}),
        (FAIL, {}),
    ]
    device = kernel["fcopy"]
    device.host_sends(negotiation((1, 1)))
    device.host_sends(fcopy_start("f.txt", "/tmp/x/"))
    assert [status_of(a) for a in device.answers] == [0, FAIL]


# ----------------------------------------------------------------------------- KVP's operations

EURO = b"\xe2\x82\xac"
HANDED_OUT = {
    "text": (kvp_pair(1, 0, "alpha", 1, utf16("uno")), "01000000000000000600000004000000616c706861", b"uno"),
    "empty text": (kvp_pair(1, 0, "alpha", 1, utf16("")), "01000000000000000600000001000000616c706861", b""),
    "32 bit": (
        kvp_pair(1, 0, "beta", 4, bytes.fromhex("efbeadde")),
        "0100000000000000050000000b00000062657461",
        b"3735928559",
    ),
    "64 bit, type 8": (
        kvp_pair(1, 0, "gamma", 8, bytes.fromhex("feffffffffffffff")),
        "0100000000000000060000001500000067616d6d61",
        b"18446744073709551614",
    ),
    "64 bit, type 11": (
        kvp_pair(1, 0, "delta", 11, bytes.fromhex("0500000000000000")),
        "0100000000000000060000000000000064656c7461",
        b"",
    ),
    "type 2": (kvp_pair(1, 0, "exp", 2, utf16("%TEMP%")), "01000000000000000400000000000000657870", b""),
    "broken surrogate": (
        kvp_pair(1, 0, "k", 1, b"a\0\x3d\xd8b\0\0\0"),
        "010000000000000002000000030000006b",
        b"ab",
    ),
    "1023 units of 3 bytes": (
        kvp_pair(1, 0, "k", 1, utf16("€" * 1023)),
        "010000000000000002000000ff0700006b",
        EURO * 682,
    ),
    "sizes 0": (kvp_pair(1, 0, "k", 1, utf16("value"), (0, 0)), "01000000000000000100000001", b""),
    "sizes beyond the fields": (
        kvp_pair(1, 0, "key", 1, utf16("value"), (60000, 60000)),
        "010000000000000004000000060000006b6579",
        b"value",
    ),
}


@pytest.mark.parametrize("what", HANDED_OUT)
def test_a_set_as_user_space_sees_it(kernel: HvUtils, what: str) -> None:
    request, head, value = HANDED_OUT[what]
    seen, told = ask(kernel, "kvp", registered(kernel, "kvp"), request, message())
    assert (hexed(seen[:528]), seen[528:].rstrip(b"\0"), len(seen)) == (head, value, 7432)
    assert (status_of(told), changes(request, told), told[25]) == (0, {}, 5)


def test_old_kernels_took_32_bit_numbers_for_signed(load: Load) -> None:
    kernel = load(OLD)
    seen, _ = ask(kernel, "kvp", registered(kernel, "kvp"), HANDED_OUT["32 bit"][0], message())
    assert seen[528:].rstrip(b"\0") == b"-559038737"


def test_any_status_reaches_the_host_with_the_body_untouched(kernel: HvUtils) -> None:
    file, request = registered(kernel, "kvp"), kvp_pair(1, 0, "k", 1, utf16("v"))
    for status in (0x80070103, 0x12345678, 1, 0x80041002):
        _, told = ask(
            kernel, "kvp", file, request, message(struct.pack("<I", status), (20, b"k"), (532, b"v"))
        )
        assert (status_of(told), changes(request, told)) == (status, {})


def test_delete_and_enumerate_as_user_space_sees_them(kernel: HvUtils) -> None:
    file = registered(kernel, "kvp")
    assert (
        hexed(ask(kernel, "kvp", file, kvp_delete(0, "alpha"), message())[0]) == "0200000006000000616c706861"
    )
    assert hexed(ask(kernel, "kvp", file, kvp_enumerate(0, 7), message())[0]) == "0300000007"
    assert hexed(ask(kernel, "kvp", file, kvp_enumerate(7, 0), message())[0]) == "0307"


def side_by_side(key: str, value: str) -> str:
    """Key and value of an item whose key fills its field."""
    return utf16(key).ljust(512, b"\0").hex() + hexed(utf16(value))


GET = kvp_pair(0, 0, "alpha")
LIST = kvp_enumerate(0, 7)
ANSWERED = {
    "GET at 528": (GET, ((528, b"seven77\0"),), {12: "08", 528: "6e00370037"}),
    "GET at 532": (GET, ((532, b"seven77\0"),), {12: "10", 528: "73006500760065006e00370037"}),
    "GET, 2043": (GET, ((532, b"v" * 2043),), {12: "fe07", 528: hexed(utf16("v" * 1022))}),
    "ENUMERATE": (
        LIST,
        ((20, b"color\0"), (532, b"green\0")),
        {8: "010000000c0000000c00000063006f006c006f0072", 532: "67007200650065006e"},
    ),
    "its own sizes": (
        LIST,
        ((8, struct.pack("<III", 4, 77, 88)), (20, b"color\0"), (532, b"green\0")),
        {8: "010000000c0000000c00000063006f006c006f0072", 532: "67007200650065006e"},
    ),
    "253 and 1021": (
        LIST,
        ((20, b"k" * 253), (532, b"v" * 1021)),
        {8: "01000000fc010000fc070000" + side_by_side("k" * 253, "v" * 1021)},
    ),
    "511 and 2047": (
        LIST,
        ((20, b"k" * 511), (532, b"v" * 2047)),
        {8: "01000000fe010000fe070000" + side_by_side("k" * 254, "v" * 1022)},
    ),
    "not ASCII": (
        LIST,
        ((20, "näme-世😀".encode()), (532, "€ 🚀".encode())),
        {8: "01000000120000000a0000006e00e4006d0065002d00164e3dd800de", 532: "ac2020003dd880de"},
    ),
    "a pair at the limit": (
        LIST,
        ((20, b"k"), (532, b"v" * 1021 + "🚀".encode())),
        {8: "0100000004000000fc0700006b", 532: hexed(utf16("v" * 1021))},
    ),
    "empty": (LIST, (), {8: "010000000200000002"}),
    "operation 9": (kvp_enumerate(0, 5, 9), (), {8: "010000000200000002"}),
}


@pytest.mark.parametrize("what", ANSWERED)
def test_an_answer_as_the_host_sees_it(kernel: HvUtils, what: str) -> None:
    request, parts, expected = ANSWERED[what]
    _, told = ask(kernel, "kvp", registered(kernel, "kvp"), request, message(bytes(4), *parts))
    assert (status_of(told), changes(request, told)) == (0, expected)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (((20, b"k"), (532, b"ab\xff\xfecd")), {8: "0100000004000000d6ffffff6b", 532: "610062"}),
        (((20, b"k\xff"), (532, b"abcd")), {8: "01000000d6ffffff0a0000006b", 532: "61006200630064"}),
    ],
)
def test_broken_utf8_fails_with_nonsense_in_the_sizes(
    kernel: HvUtils, parts: tuple[tuple[int, bytes], ...], expected: dict[int, str]
) -> None:
    _, told = ask(kernel, "kvp", registered(kernel, "kvp"), LIST, message(bytes(4), *parts))
    assert (status_of(told), changes(LIST, told)) == (FAIL, expected)


def test_longer_answers_are_taken_and_shorter_ones_may_be_mended(kernel: HvUtils) -> None:
    file = registered(kernel, "kvp")
    _, told = ask(kernel, "kvp", file, LIST, message(bytes(4), (20, b"k"), (532, b"v"), size=7500))
    assert changes(LIST, told) == {8: "0100000004000000040000006b", 532: "76"}
    kernel["kvp"].host_sends(LIST)
    file.read(7432)
    assert fails(errno.EINVAL, file.write, bytes(7431))
    file.write(message(bytes(4), (20, b"k")))
    assert changes(LIST, kernel["kvp"].answers[-1]) == {8: "0100000004000000020000006b"}


def test_ip_settings_both_ways(kernel: HvUtils) -> None:
    file = registered(kernel, "kvp")
    request = kvp_ip(4, "00:15:5D:01:02:03", 3, 1)
    lists = ((262, b"192.0.2.7;"), (2310, b"255.255.255.0;"), (4358, b"192.0.2.1;"), (5382, b"192.0.2.53;"))
    answer = message(bytes(4), (4, b"00:15:5D:01:02:03"), (260, bytes([1, 1])), *lists)
    seen, told = ask(kernel, "kvp", file, request, answer)
    assert hexed(seen) == "04010000" + b"00:15:5D:01:02:03".ljust(256, b"\0").hex() + "03"
    assert changes(request, told) == {
        258: "0101" + hexed(utf16("192.0.2.7;")),
        2308: hexed(utf16("255.255.255.0;")),
        4356: hexed(utf16("192.0.2.1;")),
        5380: hexed(utf16("192.0.2.53;")),
    }
    _, told = ask(kernel, "kvp", file, request, message(bytes(4), (260, bytes([1, 0])), lists[0]))
    assert changes(request, told) == {258: "0100" + hexed(utf16("192.0.2.7;"))}
    _, told = ask(kernel, "kvp", file, request, message(bytes.fromhex("05400080")))
    assert (status_of(told), changes(request, told)) == (FAIL, {})
    request = kvp_ip(5, "{11111111-2222-3333-4444-555555555555}", 1, 0, ("192.0.2.9;", "m;", "g;", "d;"))
    seen, told = ask(kernel, "kvp", file, request, message(bytes.fromhex("02100480")))
    assert (seen[4:42], seen[260:262]) == (b"{11111111-2222-3333-4444-555555555555}", b"\1\0")
    assert (seen[262:272], seen[2310:2313], seen[4358:4361], seen[5382:5385]) == (
        b"192.0.2.9;",
        b"m;\0",
        b"g;\0",
        b"d;\0",
    )
    assert (status_of(told), changes(request, told)) == (0x80041002, {})


def test_behind_a_short_packet_lies_an_older_one(kernel: HvUtils) -> None:
    file = registered(kernel, "kvp")
    ask(kernel, "kvp", file, kvp_ip(5, "{11111111-2222-3333-4444-555555555555}"), message())
    request = packet("kvp", bytes([3, 1]))
    seen, told = ask(kernel, "kvp", file, request, message(bytes(4), (20, b"k"), (532, b"v")))
    assert hexed(seen) == "03010000310031"
    assert (len(told), changes(request, told)) == (32, {})


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        (LIST, ((20, b"k" * 512), (532, b"v"))),
        (LIST, ((20, b"k"), (532, b"v" * 2048))),
        (GET, ((532, b"v" * 2048),)),
        *(
            (kvp_ip(4, "00:15:5D:01:02:03"), ((at, b"1" * size),))
            for at, size in ((4, 256), (262, 2048), (2310, 2048), (4358, 1024), (5382, 2048))
        ),
    ],
)
def test_a_text_without_nul_is_a_kernel_bug(
    kernel: HvUtils, request_: bytes, parts: tuple[tuple[int, bytes], ...]
) -> None:
    file, device = registered(kernel, "kvp"), kernel["kvp"]
    device.host_sends(request_)
    file.read(7432)
    with pytest.raises(KernelBug):
        file.write(message(bytes(4), *parts))
    kernel.advance(1000)
    assert (device.answers, device.bugs, file.closed) == ([], 1, True)
    # The next opener can register.
    _, told = ask(kernel, "kvp", registered(kernel, "kvp"), LIST, message())
    assert status_of(told) == 0


# ----------------------------------------------------------------------------- backup


def test_backups_operations(kernel: HvUtils) -> None:
    file, device = registered(kernel, "vss"), kernel["vss"]
    backup = vss(2, b"\xee" * 24)
    for answer, status, changed in (
        (bytes(12), 0, {}),
        (bytes(8) + bytes([5, 0, 0, 0]), 0, {}),
        (bytes([2]) + bytes(11), 2, {8: "05"}),
        (bytes.fromhex("05400080") + bytes(8), FAIL, {}),
    ):
        seen, told = ask(kernel, "vss", file, backup, answer)
        assert (seen, status_of(told), changes(backup, told)) == (bytes([2]) + bytes(11), status, changed)
    big = packet("vss", bytes([5]).ljust(8, b"\0").ljust(6260, b"\1"))
    assert ask(kernel, "vss", file, big, bytes(12))[0] == bytes([5]) + bytes(11)
    for operation in (0, 1, 3, 4, 7, 8, 77, 129):
        device.host_sends(vss(operation))
        assert (status_of(device.answers[-1]), file.poll()) == (0, 0)


@pytest.mark.parametrize("low", [0x80, 0x81])
def test_some_statuses_are_taken_for_a_registration(kernel: HvUtils, low: int) -> None:
    file, device = registered(kernel, "vss"), kernel["vss"]
    device.host_sends(vss(6))
    file.read(12)
    assert fails(errno.EINVAL, file.write, bytes([low, 0x12, 7, 0x80]) + bytes(8))
    assert device.answers == []
    file.write(bytes(12))
    assert status_of(device.answers[0]) == 0


def test_a_thaw_waits_for_the_freezes_answer(kernel: HvUtils) -> None:
    file, device = registered(kernel, "vss"), kernel["vss"]
    device.host_sends(vss(5))
    device.host_sends(vss(6))
    assert (file.read(12)[0], file.poll()) == (5, 0)
    file.write(bytes(12))
    assert file.read(12)[0] == 6


def test_what_lies_behind_a_failure_waits_for_a_registration(kernel: HvUtils) -> None:
    file, device = registered(kernel, "vss"), kernel["vss"]
    device.host_sends(vss(5))
    device.host_sends(vss(6))
    file.read(12)
    file.close()
    device.host_sends(vss(6))
    kernel.advance(1000)
    assert [status_of(a) for a in device.answers] == [FAIL]
    assert registered(kernel, "vss").read(12)[0] == 6


def test_short_and_long_backup_messages(kernel: HvUtils) -> None:
    file, device = registered(kernel, "vss"), kernel["vss"]
    device.host_sends(packet("vss", bytes([5]) + bytes(3)))
    device.host_sends(packet("vss", bytes([7]).ljust(12500, b"\0")))
    assert (device.answers, file.poll()) == ([], 0)
    device.host_sends(packet("vss", bytes([5]) + bytes(10)))  # comes as 12
    assert file.read(12)[0] == 5


# ----------------------------------------------------------------------------- file copy


def test_starts_names_and_their_cuts(kernel: HvUtils) -> None:
    file = registered(kernel, "fcopy")
    seen, told = ask(kernel, "fcopy", file, fcopy_start("näme-世😀.txt", "/tmp/€", 3, 2**40 + 5), bytes(4))
    assert (len(seen), seen[:36]) == (1088, bytes(36))
    assert seen[36:556].rstrip(b"\0").decode() == "näme-世😀.txt"
    assert seen[556:1076].rstrip(b"\0").decode() == "/tmp/€"
    assert struct.unpack_from("<IQ", seen, 1076) == (3, 2**40 + 5)
    assert status_of(told) == 0
    for name, expected in (("n" * 259, b"n" * 259), ("€" * 259, EURO * 86)):
        seen, _ = ask(kernel, "fcopy", file, fcopy_start(name, "/"), bytes(4))
        assert seen[36:556].rstrip(b"\0") == expected
    # Names, flags and size of the message before.
    seen, _ = ask(kernel, "fcopy", file, fcopy(0), bytes(4))
    assert seen[36:556].rstrip(b"\0") == EURO * 86


def test_writes_are_raw_and_unchecked(kernel: HvUtils) -> None:
    file = registered(kernel, "fcopy")
    request = fcopy_write(4294967297, b"0123456789")
    seen, _ = ask(kernel, "fcopy", file, request, bytes(4))
    assert seen == request[28:6224]
    short = fcopy(1, struct.pack("<IQI", 0, 0, 0xFFFFFFFF) + b"abcde")
    seen, told = ask(kernel, "fcopy", file, short, bytes.fromhex("05400080"))
    assert (len(seen), seen[48:64].hex()) == (6196, "ffffffff61626364650000003839dddd")
    assert status_of(told) == FAIL


def test_the_others_come_with_the_packets_length(kernel: HvUtils) -> None:
    file = registered(kernel, "fcopy")
    ask(kernel, "fcopy", file, fcopy_write(0, b"0123456789"), bytes(4))
    seen, _ = ask(kernel, "fcopy", file, fcopy(2), bytes(4))
    assert (len(seen), seen[52:64].hex()) == (64, "30313233343536373839dddd")
    seen, _ = ask(kernel, "fcopy", file, fcopy(3, size=100), bytes(4))
    assert (len(seen), seen[36:100], seen[100:]) == (128, bytes(64), b"\xdd" * 28)
    kernel["fcopy"].host_sends(packet("fcopy", bytes(8)))
    assert file.poll() == 0


# ----------------------------------------------------------------------------- time and ends


@pytest.mark.parametrize(
    ("name", "request_", "limit"),
    [
        ("kvp", LIST, 30),
        ("vss", vss(6), 30),
        ("vss", vss(2), 30),
        ("vss", vss(5), 900),
        ("fcopy", fcopy(2), 30),
    ],
)
def test_the_limits(kernel: HvUtils, name: str, request_: bytes, limit: float) -> None:
    file, device = registered(kernel, name), kernel[name]
    device.host_sends(request_)
    file.read(8192)
    kernel.advance(limit - 0.001)
    assert device.answers == []
    kernel.advance(0.001)
    assert [status_of(a) for a in device.answers] == [FAIL]
    assert fails(errno.EINVAL, file.write, {"kvp": message(), "vss": bytes(12), "fcopy": bytes(4)}[name])


def test_each_limit_begins_with_its_own_request(kernel: HvUtils) -> None:
    device = kernel["vss"]
    file = registered(kernel, "vss")
    device.host_sends(vss(6))
    device.host_sends(vss(2))
    file.read(12)
    kernel.advance(45)
    assert len(device.answers) == 1
    kernel.advance(15)
    assert len(device.answers) == 2


def test_a_late_answer_is_taken_as_the_next_ones(kernel: HvUtils) -> None:
    file, device = registered(kernel, "kvp"), kernel["kvp"]
    a, b = kvp_enumerate(2, 10), kvp_enumerate(2, 11)
    device.host_sends(a)
    file.read(7432)
    kernel.advance(31)
    assert fails(errno.EINVAL, file.write, message(bytes(4), (20, b"late-A")))
    device.host_sends(b)
    file.write(message(bytes(4), (20, b"late-A")))
    assert changes(b, device.answers[-1]) == {8: "010000000e000000020000006c006100740065002d0041"}
    assert hexed(file.read(7432)) == "030200000b"
    assert fails(errno.EINVAL, file.write, message(bytes(4), (20, b"B")))


def test_an_unread_message_fails_the_next_at_once(kernel: HvUtils) -> None:
    file, device = registered(kernel, "kvp"), kernel["kvp"]
    device.host_sends(kvp_enumerate(2, 12))
    kernel.advance(30)
    device.host_sends(kvp_enumerate(2, 10))
    assert [status_of(a) for a in device.answers] == [FAIL, FAIL]
    assert hexed(file.read(7432)) == "030200000c"
    _, told = ask(kernel, "kvp", file, kvp_enumerate(2, 11), message(bytes(4), (20, b"B")))
    assert status_of(told) == 0


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize(
    ("name", "request_"), [("kvp", LIST), ("vss", vss(5)), ("fcopy", fcopy_start("f", "/"))]
)
def test_closing_in_a_transaction_fails_it_at_once(
    kernel: HvUtils, name: str, request_: bytes, is_read: bool
) -> None:
    file, device = registered(kernel, name), kernel[name]
    device.host_sends(request_)
    if is_read:
        file.read(8192)
    file.close()
    assert [(status_of(a), changes(request_, a)) for a in device.answers] == [(FAIL, {})]
    assert (device.state, kernel.open(name).poll()) == (State.INIT, 0)


def test_kvp_keeps_what_is_asked_without_a_daemon(kernel: HvUtils) -> None:
    device = kernel["kvp"]
    for request in (kvp_enumerate(2, 2), kvp_enumerate(2, 3), negotiation((3, 0), (4, 0))):
        device.host_sends(request)
    kernel.advance(1000)
    file = registered(kernel, "kvp")
    for index in (2, 3):
        assert file.read(7432)[4] == index
        file.write(message(bytes(4), (20, b"k")))
    assert [status_of(a) for a in device.answers] == [0, 0, 0]
    assert device.answers[2][28:41].hex() == "01000100000000000300000004"


@pytest.mark.parametrize("name", NAMES)
def test_other_message_types_are_dropped_by_newer_kernels_only(load: Load, name: str) -> None:
    request = packet(name, bytes(2580), 9)
    for which, readable in ((DEBIAN_12, 0), (OLD, select.POLLIN)):
        kernel = load(which)
        if name == "vss":
            request = packet(name, bytes([5]).ljust(32, b"\0"), 9)
        file = registered(kernel, name)
        kernel[name].host_sends(request)
        assert (kernel[name].answers, file.poll()) == ([], readable)


def test_hibernation(kernel: HvUtils) -> None:
    files = {name: registered(kernel, name) for name in NAMES}
    kernel["vss"].host_sends(vss(5))
    files["vss"].read(12)
    for name in NAMES:
        kernel[name].hibernate()
    assert fails(errno.EINVAL, files["vss"].write, bytes(12))
    assert files["vss"].read(8192) == bytes([6]) + bytes(11)
    assert fails(errno.EINVAL, files["vss"].write, bytes(12))
    assert files["fcopy"].read(8192) == bytes([3]) + bytes(35)
    assert fails(errno.EINVAL, files["fcopy"].write, bytes(4))
    assert files["kvp"].poll() == 0
    kernel.advance(1000)
    assert kernel["vss"].answers == []
    for name in NAMES:
        kernel[name].host_sends(negotiation(*SUPPORTED[name]))
        assert status_of(kernel[name].answers[-1]) == 0
    _, told = ask(kernel, "kvp", files["kvp"], LIST, message(bytes(4), (20, b"k"), (532, b"v")))
    assert status_of(told) == 0


def test_an_unread_message_keeps_the_made_up_one_away(kernel: HvUtils) -> None:
    file = registered(kernel, "vss")
    kernel["vss"].host_sends(vss(5))
    kernel["vss"].hibernate()
    assert file.read(12)[0] == 5
    assert file.poll() == 0


# ----------------------------------------------------------------------------- lies


def test_lies_are_told_as_they_are(kernel: HvUtils) -> None:
    file, device = registered(kernel, "vss"), kernel["vss"]
    device.fails("read", errno.EINTR)
    device.fails("write", errno.EFAULT)
    device.fails("poll", errno.EINTR)
    device.pretends(select.POLLIN, select.POLLERR)
    assert fails(errno.EINTR, file.read, 12)
    assert fails(errno.EFAULT, file.write, bytes(12))
    assert fails(errno.EINTR, file.poll)
    assert [file.poll(), file.poll(), file.poll()] == [select.POLLIN, select.POLLERR, 0]
    for lie in (b"", b"\5", bytes(100)):
        device.tells(lie)
        assert file.read(8192) == lie
        file.write(bytes(12))
    assert (device.answers, device.taken) == ([], [bytes(12)] * 3)
    device.tells(b"\6" + bytes(11), asks=False)
    file.read(12)
    assert fails(errno.EINVAL, file.write, bytes(12))
    _, told = ask(kernel, "vss", file, vss(6), bytes(12))
    assert status_of(told) == 0
