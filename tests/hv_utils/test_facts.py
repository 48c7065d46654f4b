# SPDX-License-Identifier: Apache-2.0
"""The twelve facts of hv_utils' character devices that decide how they are served (PROTOCOL §10), by their numbers."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hv_utils_model import FAIL, FREEZE_LIMIT, LIMIT, HvUtils
from hv_utils_model.packets import (
    changes,
    fcopy,
    fcopy_start,
    fcopy_write,
    kvp_delete,
    kvp_enumerate,
    kvp_ip,
    kvp_pair,
    negotiation,
    status_of,
    utf16,
    vss,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving import Attended, Freezer, Served, Work, run

from hvring.errors import ChannelRescindedError, EffectError
from hvring.events import EventKind
from hvring.guest.files import DirectoryReceiver
from hvring.guest.network import IpInfo
from hvring.guest.pools import PoolStore
from hvring.ic.hv_utils import DIALECTS
from hvring.ic.kvp import KvpEnumerate, KvpItem
from hvring.services import Fcopy, Kvp, Vss
from hvring.status import Status
from hvring.transport import utils
from hvring.transport.errors import DeviceBusyError, DeviceFaultError
from hvring.transport.sysfs import Bus
from hvring.transport.utils import NodeFile, UtilsChannel

SERVICES = ("kvp", "vss", "fcopy")
MAC = "00:15:5D:01:02:03"
NO_MORE = 0x80070103


class Store:
    """Has what it is told to have, in all pools."""

    def __init__(self, key: str = "key", value: str = "value", texts: str = "") -> None:
        self.pair = (key, value)
        self.texts = texts
        self.work: Work | None = None
        self.stored: dict[str, str] = {}

    def prepare(self) -> None:
        pass

    def automatic(self) -> tuple[tuple[str, str], ...]:
        return (self.pair,)

    def get(self, pool: int, key: str) -> Any:
        return self.pair[1] if self.work is None else self.work.pending(self.pair[1])

    def record(self, pool: int, index: int) -> Any:
        return self.pair if self.work is None else self.work.pending(self.pair)

    def set(self, pool: int, key: str, value: str) -> None:
        self.stored[key] = value

    def delete(self, pool: int, key: str) -> bool:
        return True

    def ip_info(self, mac: str) -> IpInfo:
        return IpInfo(3, True, self.texts, self.texts, self.texts, self.texts)

    def set_ip(self, guid: str, wish: IpInfo) -> None:
        raise EffectError("this machine's network is not changed for a host", Status.NOT_SUPPORTED)

    def adapter(self, guid: str) -> bool:
        return True


@pytest.fixture
def store(tmp_path: Path) -> PoolStore:
    return PoolStore(tmp_path)


# ------------------------------------------------------------------------- 1: a late answer is the next one's


def test_fact_1_an_answer_that_is_too_late_is_kept_from_the_next_request(kernel: HvUtils) -> None:
    served = Served(kernel, Kvp(Store()))
    channel, device = served.channel, served.device
    a, b = kvp_enumerate(0, 1), kvp_enumerate(0, 2)
    device.host_sends(a)
    asked = channel.recv()
    kernel.advance(LIMIT)
    device.host_sends(b)
    assert channel.answer(0, KvpItem(0, 1, "a", "a")) is False
    assert served.statuses() == [FAIL]
    asked = channel.recv()
    assert asked == KvpEnumerate(0, 2)
    assert channel.answer(0, KvpItem(0, 2, "b", "b")) is True
    assert served.device.answers[1][48:50] == b"b\0"
    assert channel.stats() == {"received": 2, "answered": 1, "late": 1, "refused": 0}


def test_fact_1_work_that_nobody_waits_for_is_broken_off_and_the_next_answered(kernel: HvUtils) -> None:
    store = Store()
    served = Served(kernel, Kvp(store))
    slow = store.work = Work()
    served.device.host_sends(kvp_enumerate(0, 1))
    assert not served.look()
    kernel.advance(LIMIT)  # the kernel has given up, and nobody looked in time
    store.work, store.pair = None, ("new", "value")
    served.device.host_sends(kvp_enumerate(0, 2))
    slow.finish()
    while served.responder.respond():
        pass
    assert slow.cancelled
    assert served.statuses() == [FAIL, 0]
    assert served.device.answers[1][48:54] == utf16("new")[:-2]


# ------------------------------------------------------------------------- 2: no text without a NUL

UNPLEASANT = st.one_of(
    st.text(st.characters(codec=None), max_size=20),
    st.builds(
        lambda unit, times, end: unit * times + end,
        st.sampled_from(["k", "ä", "€", "🚀", "\udc80", "a\0", "\ud83d"]),
        st.sampled_from(
            [62, 126, 127, 128, 254, 255, 256, 510, 511, 512, 682, 683, 1022, 1023, 1024, 2047, 2048]
        ),
        st.sampled_from(["", "x", "é", "🚀"]),
    ),
)


@settings(deadline=None)
@example(key="k", value="€" * 682 + "é", texts="")  # 2048 bytes of UTF-8, and not too many units
@example(key="€" * 170 + "é", value="v", texts="")
@example(key="k", value="v", texts="€" * 340 + "1234")
@example(key="k", value="v", texts="€" * 682 + "é")
@given(key=UNPLEASANT, value=UNPLEASANT, texts=UNPLEASANT)
def test_fact_2_no_text_of_a_store_ends_in_a_kernel_bug(key: str, value: str, texts: str) -> None:
    kernel = HvUtils()
    served = Served(kernel, Kvp(Store(key, value, texts)))
    try:
        for request in (kvp_pair(0, 0, "k"), kvp_enumerate(0, 0), kvp_enumerate(2, 0), kvp_ip(4, MAC)):
            assert served.ask(request) is not None
        assert served.device.bugs == 0
        assert not served.file.closed
    finally:
        served.end()
    assert kernel["kvp"].file is None


@settings(deadline=None)
@given(key=UNPLEASANT, value=UNPLEASANT)
def test_fact_2_no_answer_of_any_service_lacks_its_nul(key: str, value: str) -> None:
    try:
        data = DIALECTS["kvp"].encode(KvpEnumerate(0, 0), 0, KvpItem(0, 0, key, value))
    except ValueError:
        return
    assert len(data) == 7432
    assert b"\0" in data[20:532]
    assert b"\0" in data[532:2580]
    data[20:532].split(b"\0")[0].decode()
    data[532:2580].split(b"\0")[0].decode()


# ------------------------------------------------------------------------- 3: GET


@pytest.mark.parametrize("value", ["", "v", "seven77", "näme-世😀", "x" * 1022])
def test_fact_3_the_host_gets_the_value_it_asks_for(kernel: HvUtils, store: PoolStore, value: str) -> None:
    served = Served(kernel, Kvp(store))
    assert served.status(kvp_pair(1, 0, "alpha", 1, utf16(value))) == 0
    request = kvp_pair(0, 0, "alpha")
    answer = served.ask(request)
    assert answer is not None
    expected = utf16(value)
    assert struct.unpack_from("<II", answer, 28 + 8) == (len(utf16("alpha")), len(expected))
    assert answer[28 + 528 : 28 + 528 + len(expected)] == expected
    assert served.status(kvp_delete(0, "alpha")) == 0
    assert served.status(request) == NO_MORE


# ------------------------------------------------------------------------- 4: reading blocks


@pytest.mark.parametrize("service", [Kvp(Store()), Vss(Freezer()), Fcopy(DirectoryReceiver())], ids=SERVICES)
def test_fact_4_nothing_is_read_that_is_not_there(kernel: HvUtils, service: Any) -> None:
    served = Served(kernel, service)
    assert served.channel.recv() is None
    assert not served.look()
    assert not served.channel.wait(0)
    assert served.device.blocked_reads == 0


@pytest.mark.parametrize("service", [Kvp(Store()), Vss(Freezer()), Fcopy(DirectoryReceiver())], ids=SERVICES)
def test_fact_4_an_event_loop_sees_a_request_and_writes_without_asking(kernel: HvUtils, service: Any) -> None:
    request = {"kvp": kvp_enumerate(0, 0), "vss": vss(2), "fcopy": fcopy(2)}[service.name]

    async def main() -> None:
        async with Attended(kernel, [service]) as attended:
            assert await attended.status(service.name, request) == 0
        assert kernel[service.name].blocked_reads == 0

    run(main())


# ------------------------------------------------------------------------- 5: when the kernel begins to read


def test_fact_5_opening_kvp_is_what_makes_the_kernel_answer_its_host(kernel: HvUtils) -> None:
    device = kernel["kvp"]
    device.host_sends(negotiation((3, 0), (4, 0), (5, 0)))
    device.host_sends(kvp_enumerate(0, 0))
    assert device.answers == []
    served = Served(kernel, Kvp(Store()))
    assert served.statuses() == [0]  # the kernel's own
    while served.responder.respond():
        pass
    assert served.statuses() == [0, 0]
    assert served.channel.greeting == "3.1"


@pytest.mark.parametrize("name", ["vss", "fcopy"])
def test_fact_5_the_others_negotiate_without_us_and_requests_before_us_fail(
    kernel: HvUtils, name: str
) -> None:
    device = kernel[name]
    device.host_sends(negotiation((5, 0), (1, 1)))
    device.host_sends({"vss": vss(5), "fcopy": fcopy_start("f", "/")}[name])
    assert [status_of(a) for a in device.answers] == [0, FAIL]
    freezer = Freezer()
    served = Served(kernel, Vss(freezer) if name == "vss" else Fcopy(DirectoryReceiver()))
    assert not served.look()
    assert freezer.log == []


# ------------------------------------------------------------------------- 6: exclusive


def test_fact_6_a_device_that_another_has_is_busy_and_left_alone(
    kernel: HvUtils, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = kernel.open("vss")
    bus = Bus(str(tmp_path / "sys"), str(tmp_path / "dev"))
    monkeypatch.setattr(utils, "NodeFile", lambda _: kernel.open("vss"))
    with pytest.raises(DeviceBusyError):
        utils.open_now("vss", bus=bus)
    assert not other.closed
    other.close()
    with utils.open_now("vss", bus=bus) as channel:
        assert not channel.closed
    assert kernel["vss"].file is None


def test_fact_6_the_descriptor_does_not_go_to_children(tmp_path: Path) -> None:
    path = tmp_path / "node"
    path.touch()
    file = NodeFile(str(path))
    try:
        assert not os.get_inheritable(file.fileno())
    finally:
        file.close()


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EFAULT, errno.EBADF, errno.EINTR])
@pytest.mark.parametrize("call", ["write", "read", "poll"])
def test_fact_6_a_registration_that_fails_gives_the_device_back(
    kernel: HvUtils, name: str, number: int, call: str
) -> None:
    file = kernel.open(name)
    kernel[name].fails(call, number)
    with pytest.raises((DeviceFaultError, ChannelRescindedError)):
        UtilsChannel(file, name)
    assert file.closed


# ------------------------------------------------------------------------- 7: who leaves must be let go


def test_fact_7_the_device_is_closed_at_once_when_the_driver_leaves_and_opened_when_it_is_back(
    kernel: HvUtils,
) -> None:
    async def main() -> None:
        services = [Kvp(Store()), Vss(Freezer()), Fcopy(DirectoryReceiver())]
        async with Attended(kernel, services) as attended:
            for name in SERVICES:
                assert not kernel[name].unbind()
            await attended.until(lambda: not kernel.nodes())
            for name in SERVICES:
                kernel[name].bind()
            attended.changed()
            for name in SERVICES:
                await attended.reopened(name, 1)
                assert attended.told(name, EventKind.RESCINDED) == 1
            assert await attended.status("kvp", kvp_enumerate(0, 0)) == 0
            assert await attended.status("vss", vss(2)) == 0

    run(main())


def test_fact_7_one_service_that_leaves_takes_no_other_with_it(kernel: HvUtils) -> None:
    async def main() -> None:
        async with Attended(kernel, [Kvp(Store()), Vss(Freezer())]) as attended:
            kernel["vss"].unbind()
            await attended.until(lambda: "hv_vss" not in kernel.nodes())
            assert await attended.status("kvp", kvp_enumerate(0, 0)) == 0
            assert attended.told("kvp", EventKind.OPENED) == 1

    run(main())


# ------------------------------------------------------------------------- 8: a close thaws nothing


def test_fact_8_the_end_of_the_channel_thaws(kernel: HvUtils) -> None:
    async def main() -> None:
        freezer = Freezer()
        async with Attended(kernel, [Vss(freezer)]) as attended:
            assert await attended.status("vss", vss(5)) == 0
            assert freezer.frozen
            kernel["vss"].unbind()
            await attended.until(lambda: not freezer.frozen)
        assert freezer.log == ["freeze", "thaw"]

    run(main())


def test_fact_8_who_stops_in_a_freeze_thaws_and_the_host_is_told_at_once(kernel: HvUtils) -> None:
    freezer = Freezer()
    work = Work()
    freezer.work = work.pending()
    served = Served(kernel, Vss(freezer))
    served.device.host_sends(vss(5))
    assert not served.look()
    assert served.responder.is_blocked
    served.end()
    assert served.statuses() == [FAIL]
    assert (work.cancelled, freezer.log[-1]) == (True, "thaw")


# ------------------------------------------------------------------------- 9: what backup cannot say or see


@pytest.mark.parametrize("flags", [None, 0, 5])
def test_fact_9_flags_cannot_be_told(kernel: HvUtils, flags: int | None) -> None:
    served = Served(kernel, Vss(Freezer(), flags))
    request = vss(2, b"\xee" * 24)
    answer = served.ask(request)
    assert answer is not None
    assert (status_of(answer), changes(request, answer)) == (0, {})


def test_fact_9_the_other_operations_are_the_kernels(kernel: HvUtils) -> None:
    served = Served(kernel, Vss(Freezer()))
    for operation in (0, 1, 3, 4, 7, 8, 77, 129):
        assert served.status(vss(operation)) == 0
    assert served.service.counters.requests == 0


# ------------------------------------------------------------------------- 10: the status


@pytest.mark.parametrize("low", range(0, 256, 5))
def test_fact_10_any_status_goes_through(kernel: HvUtils, low: int) -> None:
    freezer = Freezer()
    served = Served(kernel, Vss(freezer))
    freezer.error = EffectError("no", 0x80070000 + low)
    assert served.status(vss(5)) == 0x80070000 + low


@pytest.mark.parametrize("status", [0x80070080, 0x80070081, 0x81, 0x12345680])
def test_fact_10_what_would_be_taken_for_a_registration_becomes_fail(kernel: HvUtils, status: int) -> None:
    freezer = Freezer()
    served = Served(kernel, Vss(freezer))
    freezer.error = EffectError("no", status)
    assert served.status(vss(5)) == FAIL
    assert served.status(vss(2)) == 0
    assert served.channel.stats()["refused"] == 0


# ------------------------------------------------------------------------- 11: numbers


def test_fact_11_numbers_come_as_text(kernel: HvUtils) -> None:
    store = Store()
    served = Served(kernel, Kvp(store))
    assert served.status(kvp_pair(1, 0, "four", 4, bytes.fromhex("efbeadde"))) == 0
    assert served.status(kvp_pair(1, 0, "eight", 8, b"\xfe" + b"\xff" * 7)) == 0
    assert served.status(kvp_pair(1, 0, "empty", 1, utf16(""))) == 0
    assert store.stored == {"four": "3735928559", "eight": str(2**64 - 2), "empty": ""}


@pytest.mark.parametrize("kind", [0, 2, 3, 7, 11, 0xFFFFFFFF])
def test_fact_11_values_that_the_kernel_lost_are_refused_and_not_stored_empty(
    kernel: HvUtils, kind: int
) -> None:
    store = Store()
    served = Served(kernel, Kvp(store))
    assert served.status(kvp_pair(1, 0, "key", kind, bytes(8))) == NO_MORE
    assert store.stored == {}
    assert served.service.counters.malformed == 1


# ------------------------------------------------------------------------- 12: limits and hibernation


@pytest.mark.parametrize(
    ("operation", "limit"), [(vss(6), LIMIT), (vss(5), FREEZE_LIMIT)], ids=["THAW", "FREEZE"]
)
def test_fact_12_we_give_up_before_the_kernel_does(kernel: HvUtils, operation: bytes, limit: float) -> None:
    class Slow(Vss):
        work: ClassVar = Work()

        def handle(self, message: Any) -> Any:
            return self.work.pending()

    Slow.work = Work()
    served = Served(kernel, Slow(Freezer()), by_the_model=True)
    served.device.host_sends(operation)
    assert not served.look()
    left = served.responder.timeout()
    assert left is not None
    assert limit - 40 < left < limit
    kernel.advance(left)
    assert served.device.answers == []
    served.look()
    assert served.statuses() == [FAIL]
    assert Slow.work.cancelled
    assert served.channel.stats()["answered"] == 1  # ours, not the kernel's


def test_fact_12_kvp_goes_on_over_the_same_descriptor_after_hibernation(kernel: HvUtils) -> None:
    served = Served(kernel, Kvp(Store()))
    kernel["kvp"].hibernate()
    kernel["kvp"].host_sends(negotiation((4, 0)))
    assert served.status(kvp_enumerate(0, 0)) == 0


def test_fact_12_hibernation_thaws_and_the_device_is_opened_anew(kernel: HvUtils) -> None:
    async def main() -> None:
        freezer = Freezer()
        async with Attended(kernel, [Vss(freezer), Kvp(Store())]) as attended:
            assert await attended.status("vss", vss(5)) == 0
            kernel["vss"].hibernate()
            kernel["kvp"].hibernate()
            await attended.reopened("vss", 1)
            assert freezer.log == ["freeze", "thaw"]
            assert attended.told("vss", EventKind.BROKEN) == 1
            assert await attended.status("vss", negotiation((5, 0))) == 0
            assert await attended.status("vss", vss(2)) == 0
            assert attended.told("kvp", EventKind.OPENED) == 1

    run(main())


def test_fact_12_hibernation_in_the_middle_of_a_freeze_leaves_nothing_frozen(kernel: HvUtils) -> None:
    async def main() -> None:
        freezer = Freezer()
        work = Work()
        freezer.work = work.pending()
        async with Attended(kernel, [Vss(freezer)]) as attended:
            kernel["vss"].host_sends(vss(5))
            while not freezer.frozen:  # of which no event may be told now
                await asyncio.sleep(0)
            kernel["vss"].hibernate()
            await attended.until(lambda: not freezer.frozen)
            await attended.reopened("vss", 1)
            assert kernel["vss"].answers == []
            assert await attended.status("vss", vss(2)) == 0

    run(main())


def test_fact_12_hibernation_removes_what_came_of_a_file(kernel: HvUtils, tmp_path: Path) -> None:
    async def main() -> None:
        service = Fcopy(DirectoryReceiver([tmp_path], sync=False))
        async with Attended(kernel, [service]) as attended:
            assert await attended.status("fcopy", fcopy_start("f.bin", str(tmp_path), 1, 10)) == 0
            assert await attended.status("fcopy", fcopy_write(0, b"12345")) == 0
            kernel["fcopy"].hibernate()
            await attended.reopened("fcopy", 1)
            assert list(tmp_path.iterdir()) == []
            assert await attended.status("fcopy", fcopy_start("f.bin", str(tmp_path), 1, 5)) == 0
            assert await attended.status("fcopy", fcopy_write(0, b"12345")) == 0
            assert await attended.status("fcopy", fcopy(2)) == 0
            assert (tmp_path / "f.bin").read_bytes() == b"12345"

    run(main())
