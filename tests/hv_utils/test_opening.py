# SPDX-License-Identifier: Apache-2.0
"""Opening a device, what each refusal is called, and waiting without an event loop."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from hv_utils_model import HvUtils
from hv_utils_model.packets import kvp_enumerate

from hvring.errors import ChannelRescindedError
from hvring.ic import KvpEnumerate
from hvring.transport import utils
from hvring.transport.errors import (
    DeviceBusyError,
    DeviceError,
    DeviceFaultError,
    DeviceNotFoundError,
    NodeMissingError,
    NodePermissionError,
    NotBoundError,
)
from hvring.transport.sysfs import UIO_DRIVER, UTILS_DRIVER
from hvring.transport.utils import UtilsChannel, open_channel, open_now


def _refusing(number: int):
    def refuse(path: str) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize(
    ("number", "driver", "kind", "says"),
    [
        (errno.EBUSY, UTILS_DRIVER, DeviceBusyError, "open: stop it"),
        (errno.EACCES, UTILS_DRIVER, NodePermissionError, "udev rule"),
        (errno.EPERM, UTILS_DRIVER, NodePermissionError, "udev rule"),
        (errno.ENOENT, UTILS_DRIVER, NodeMissingError, "devtmpfs"),
        (errno.EBADF, UTILS_DRIVER, NodeMissingError, "going away"),
        (errno.ENOENT, UIO_DRIVER, NotBoundError, "`hvring unbind kvp`"),
        (errno.ENOENT, None, NotBoundError, "load hv_utils"),
        (errno.EMFILE, UTILS_DRIVER, DeviceFaultError, "Too many open files"),
    ],
)
def test_each_refusal_has_its_name_and_says_what_to_do(
    bus, monkeypatch, number: int, driver: str | None, kind: type[DeviceError], says: str
) -> None:
    bus.offer("kvp", driver)
    monkeypatch.setattr(utils, "NodeFile", _refusing(number))
    monkeypatch.setattr(utils, "holders", lambda paths: [])
    with pytest.raises(kind, match=says):
        open_now("kvp", bus=bus)


def test_a_device_that_is_not_offered_is_said_to_be_that(bus, monkeypatch) -> None:
    monkeypatch.setattr(utils, "NodeFile", _refusing(errno.ENOENT))
    with pytest.raises(DeviceNotFoundError, match="does not offer kvp"):
        open_now("kvp", bus=bus)


@pytest.fixture
def channel(bus, kernel: HvUtils, monkeypatch) -> UtilsChannel:
    bus.offer("kvp", UTILS_DRIVER)
    monkeypatch.setattr(utils, "NodeFile", lambda path: kernel.open("kvp"))
    return open_channel("kvp", bus=bus)


def test_without_an_event_loop_a_message_ends_a_wait(kernel: HvUtils, channel: UtilsChannel) -> None:
    with channel:
        assert channel.wait(0) is False
        sender = threading.Timer(0.05, kernel["kvp"].host_sends, [kvp_enumerate(0, 7)])
        sender.start()
        assert channel.wait() is True
        sender.join()
        assert channel.recv() == KvpEnumerate(0, 7)
        assert channel.answer(0x80070103) is True
        assert channel.stats()["answered"] == 1


def test_without_an_event_loop_a_driver_that_leaves_ends_a_wait(
    kernel: HvUtils, channel: UtilsChannel
) -> None:
    with channel:
        leaver = threading.Timer(0.05, kernel["kvp"].unbind)
        leaver.start()
        with pytest.raises(ChannelRescindedError, match="gives kvp by hv_utils up"):
            channel.wait()
        leaver.join()
