# SPDX-License-Identifier: Apache-2.0
"""A kernel, or a host behind it, that lies: each lie gets its status or a reopened device, and harms nothing else."""

from __future__ import annotations

import errno
import random
import select
import struct
from pathlib import Path
from typing import Any

import pytest
from hv_utils_model import FAIL, LIMIT, HvUtils
from hv_utils_model.packets import (
    fcopy,
    fcopy_start,
    fcopy_write,
    kvp_enumerate,
    kvp_pair,
    utf16,
    vss,
)
from lies import HONEST, LIES, SERVICES
from replaying import answered
from serving import Attended, Freezer, Served, Work, run

from hvring.agent import service_loop
from hvring.errors import ChannelRescindedError
from hvring.events import EventKind
from hvring.guest.pools import PoolStore
from hvring.services import Kvp, Vss
from hvring.transport.errors import DeviceFaultError
from hvring.transport.utils import UtilsChannel


@pytest.mark.parametrize("lie", LIES)
def test_a_message_that_cannot_be_is_refused_counted_and_changes_nothing(
    kernel: HvUtils, services: dict[str, Any], files: Path, tmp_path: Path, lie: str
) -> None:
    name, data, status = LIES[lie]
    served = Served(kernel, services[name])
    served.device.tells(data)
    answered(served.responder)
    (told,) = served.device.taken
    assert int.from_bytes(told[:4], "little") == status
    counters = served.service.counters
    assert counters.failed == 1
    assert counters.requests == 1
    if lie not in ("kvp, index 0xffffffff",):  # which is only the end of a list
        assert counters.short + counters.malformed + counters.unknown_operation == 1
    assert counters.effect_errors == 0
    # The next honest request is served over the same descriptor.
    assert served.status(HONEST[name]) == 0
    served.end()
    assert served.device.bugs == 0
    assert services["vss"]._freezer.log == []
    assert list(files.iterdir()) == []
    assert PoolStore(tmp_path / "pools").record(0, 0) is None


def test_a_message_of_no_bytes_ends_the_channel(kernel: HvUtils, services: dict[str, Any]) -> None:
    for name in SERVICES:
        served = Served(kernel, services[name])
        served.device.tells(b"")
        with pytest.raises(ChannelRescindedError):
            answered(served.responder)
        served.end()
        served.open()
        assert served.status(HONEST[name]) == 0
        served.end()


@pytest.mark.parametrize("name", SERVICES)
def test_random_bytes_always_get_an_answer(kernel: HvUtils, services: dict[str, Any], name: str) -> None:
    chance = random.Random(name)
    served = Served(kernel, services[name])
    sizes = {"kvp": 7432, "vss": 12, "fcopy": 6196}
    for n in range(200):
        size = sizes[name] if n % 2 else chance.randrange(1, 8200)
        head = struct.pack(
            "<BBH", chance.choice([*range(8), 100, 129, 255]), chance.choice([0, 1, 4, 5, 255]), 0
        )
        noise = chance.choice([chance.randbytes, lambda n: b"\xff" * n, lambda n: b"a" * n, bytes])
        served.device.tells((head + noise(size))[:size])
        answered(served.responder)
        assert len(served.device.taken) == n + 1
    counters = served.service.counters
    assert counters.requests == counters.replies == 200
    served.end()
    assert (served.device.bugs, services["vss"]._freezer.frozen) == (0, False)


@pytest.mark.parametrize("operation", [5, 6])
def test_a_broken_backup_message_neither_freezes_nor_ends_a_freeze(kernel: HvUtils, operation: int) -> None:
    freezer = Freezer()
    served = Served(kernel, Vss(freezer))
    assert served.status(vss(5)) == 0
    served.device.tells(bytes([operation]).ljust(11, b"\0"))
    answered(served.responder)
    assert freezer.log == ["freeze"]
    assert served.status(vss(6)) == 0
    assert freezer.log == ["freeze", "thaw"]
    served.end()


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.startswith("fcopy, WRITE")])
def test_no_file_is_published_around_a_hole(
    kernel: HvUtils, services: dict[str, Any], files: Path, lie: str
) -> None:
    served = Served(kernel, services["fcopy"])
    assert served.status(fcopy_start("f.bin", str(files), 1, 0)) == 0
    assert served.status(fcopy_write(0, b"12345")) == 0
    served.device.tells(LIES[lie][1])
    answered(served.responder)
    served.status(fcopy_write(5, b"67890"))
    assert served.status(fcopy(2)) == FAIL
    assert list(files.iterdir()) == []
    served.end()


def test_a_start_with_the_names_of_an_older_one_publishes_nothing(
    kernel: HvUtils, services: dict[str, Any], files: Path
) -> None:
    """The host's packet was too short, and the kernel does not say so: old names, flags and size lie behind it."""
    served = Served(kernel, services["fcopy"])
    (files / "f.bin").write_bytes(b"old")
    assert served.status(fcopy_start("f.bin", str(files), 1, 5)) == 0
    assert served.status(fcopy(0)) == 0
    assert served.status(fcopy(2)) == FAIL
    assert [(p.name, p.read_bytes()) for p in files.iterdir()] == [("f.bin", b"old")]
    served.end()


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("answer", [b"", b"\x81", bytes(4), bytes(7432), b"\xff" * 7432, bytes(8192)])
def test_a_registration_that_is_answered_with_something_else_gives_the_device_back(
    kernel: HvUtils, name: str, answer: bytes
) -> None:
    file = kernel.open(name)
    write = file.write

    def write_and_lie(data: bytes) -> int:
        written = write(data)
        kernel[name].tells(answer, asks=False)
        return written

    file.write = write_and_lie  # type: ignore[method-assign]
    with pytest.raises(DeviceFaultError):
        UtilsChannel(file, name)
    assert (file.closed, kernel[name].blocked_reads) == (True, 0)


# ----------------------------------------------------------------------------- calls that fail


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.EFAULT, errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBADF]
)
@pytest.mark.parametrize("call", ["read", "write", "poll"])
def test_a_call_that_fails_costs_a_request_at_most_and_no_other_service(
    kernel: HvUtils, services: dict[str, Any], name: str, number: int, call: str
) -> None:
    async def main() -> None:
        async with Attended(kernel, list(services.values())) as attended:
            kernel[name].fails(call, number)
            status = await attended.status(name, HONEST[name])
            is_retried = call == "read" and number in (errno.EAGAIN, errno.EINTR)
            assert status == (0 if is_retried else FAIL)
            if not is_retried:
                await attended.reopened(name, 1)
                assert attended.told(name, EventKind.BROKEN) + attended.told(name, EventKind.RESCINDED) == 1
            for every in SERVICES:
                assert await attended.status(every, HONEST[every]) == 0
                assert attended.told(every, EventKind.OPENED) == (
                    2 if every == name and not is_retried else 1
                )
        assert kernel.devices[name].file is None

    run(main())


@pytest.mark.parametrize(
    "bits", [select.POLLERR, select.POLLHUP, select.POLLERR | select.POLLHUP, select.POLLNVAL]
)
def test_poll_bits_that_mean_the_end_reopen_the_device(
    kernel: HvUtils, services: dict[str, Any], bits: int
) -> None:
    async def main() -> None:
        async with Attended(kernel, [services["vss"]]) as attended:
            kernel["vss"].pretends(bits)
            assert await attended.status("vss", vss(2)) == FAIL
            await attended.reopened("vss", 1)
            assert await attended.status("vss", vss(2)) == 0

    run(main())


def test_a_failure_that_goes_on_is_told_once(
    kernel: HvUtils, services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_loop, "LAST_PAUSE", service_loop.FIRST_PAUSE)

    async def main() -> None:
        async with Attended(kernel, [services["kvp"]]) as attended:
            for n in range(20):
                kernel["kvp"].fails("write", errno.EINVAL)
                assert await attended.status("kvp", HONEST["kvp"]) == FAIL
                await attended.reopened("kvp", n + 1)
            assert attended.told("kvp", EventKind.BROKEN) == 1
            assert await attended.status("kvp", HONEST["kvp"]) == 0
            assert attended.agent.stats()["kvp"]["stopped"] is None

    run(main())


@pytest.mark.parametrize("call", ["read", "write", "poll"])
def test_a_failure_in_a_freeze_thaws(kernel: HvUtils, call: str) -> None:
    async def main() -> None:
        freezer = Freezer()
        async with Attended(kernel, [Vss(freezer)]) as attended:
            assert await attended.status("vss", vss(5)) == 0
            kernel["vss"].fails(call, errno.EFAULT)
            assert await attended.status("vss", vss(2)) == FAIL
            await attended.until(lambda: not freezer.frozen)
            assert freezer.log == ["freeze", "thaw"]
            await attended.reopened("vss", 1)
            # The host's own THAW comes behind it, and was to end a freeze that did not hold; nothing is thawed twice.
            assert await attended.status("vss", vss(6)) == FAIL
            assert freezer.log == ["freeze", "thaw"]

    run(main())


def test_an_answer_to_a_freeze_that_the_kernel_does_not_take_thaws(kernel: HvUtils) -> None:
    async def main() -> None:
        freezer = Freezer()
        async with Attended(kernel, [Vss(freezer)]) as attended:
            kernel["vss"].fails("write", errno.EINVAL)
            assert await attended.status("vss", vss(5)) == FAIL
            await attended.until(lambda: not freezer.frozen)
            assert freezer.log == ["freeze", "thaw"]

    run(main())


@pytest.mark.parametrize("call", ["read", "write", "poll"])
def test_a_failure_in_a_copy_leaves_nothing_of_it(
    kernel: HvUtils, services: dict[str, Any], files: Path, call: str
) -> None:
    async def main() -> None:
        async with Attended(kernel, [services["fcopy"]]) as attended:
            assert await attended.status("fcopy", fcopy_start("f.bin", str(files), 1, 10)) == 0
            assert await attended.status("fcopy", fcopy_write(0, b"12345")) == 0
            kernel["fcopy"].fails(call, errno.EFAULT)
            assert await attended.status("fcopy", fcopy_write(5, b"67890")) == FAIL
            await attended.reopened("fcopy", 1)
            assert await attended.status("fcopy", fcopy_write(5, b"67890")) == FAIL
            assert list(files.iterdir()) == []

    run(main())


# ----------------------------------------------------------------------------- time


def test_a_freeze_that_the_host_was_told_failed_does_not_last(kernel: HvUtils) -> None:
    freezer = Freezer()
    work = Work()
    served = Served(kernel, Vss(freezer, monotonic=lambda: kernel.clock.now), by_the_model=True)
    freezer.work = work.pending()
    served.device.host_sends(vss(5))
    assert not served.look()
    served.service.tick()
    while freezer.frozen or served.responder.is_blocked:  # each step as an agent's timer would make it
        left = served.responder.timeout()
        assert left is not None
        kernel.advance(left)
        served.service.tick()
        served.look()
    assert kernel.clock.now <= 60
    assert freezer.log == ["freeze", "thaw"]
    assert served.statuses() == [FAIL]


def test_a_kernel_that_asks_again_before_it_was_answered_gets_one_answer(kernel: HvUtils) -> None:
    freezer = Freezer()
    served = Served(kernel, Vss(freezer))
    work = Work()
    freezer.work = work.pending()
    served.device.host_sends(vss(5))
    assert not served.look()
    served.device.tells(bytes([6]) + bytes(11))
    answered(served.responder)
    assert len(served.device.taken) == 1
    assert not freezer.frozen
    assert served.channel.stats()["late"] == 1


def test_an_unread_message_of_the_past_does_not_shift_the_answers(kernel: HvUtils, tmp_path: Path) -> None:
    served = Served(kernel, Kvp(PoolStore(tmp_path)))
    for index in range(3):
        assert served.status(kvp_pair(1, 0, f"key{index}", 1, utf16(f"value{index}"))) == 0
    device = served.device
    device.answers.clear()
    device.host_sends(kvp_enumerate(0, 0))
    kernel.advance(LIMIT)  # nobody looked
    device.host_sends(kvp_enumerate(0, 1))
    assert served.statuses() == [FAIL, FAIL]
    with pytest.raises(Exception, match="answer"):  # the one that is read now is nobody's any more
        answered(served.responder)
    served.end()
    served.open()
    answer = served.ask(kvp_enumerate(0, 2))
    assert answer is not None
    assert answer[48:56] == utf16("key2")[:-2]
