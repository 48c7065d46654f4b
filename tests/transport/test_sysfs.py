# SPDX-License-Identifier: Apache-2.0
"""Finding devices, and reading what the kernel says about them (PROTOCOL §1.1, §1.2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvring.transport.errors import (
    DeviceNotFoundError,
    NotHyperVError,
    WrongDeviceError,
    WrongNameError,
)
from hvring.transport.sysfs import UIO_DRIVER, Bus
from hvring.vmbus import BY_NAME, SERVICE_NAMES
from hvring.vmbus.classes import DYNAMIC_MEMORY, SCSI

SOME = "11223344-5566-7788-99aa-bbccddeeff00"
OTHER = "11223344-5566-7788-99aa-bbccddeeff01"


def test_a_service_is_found_by_name_class_and_instance(bus) -> None:
    instance = bus.offer("kvp", "hv_utils")
    for name in ("kvp", BY_NAME["kvp"].class_guid, instance, f"{{{instance.upper()}}}"):
        device = bus.find(name)
        assert (device.service, device.instance, device.driver) == ("kvp", instance, "hv_utils")


def test_a_service_with_an_instance_of_its_own_choice_is_found_by_its_class(bus) -> None:
    bus.offer(SOME, class_guid=BY_NAME["vss"].class_guid)
    assert bus.find("vss").instance == SOME


def test_what_the_kernel_says_is_read(bus) -> None:
    instance = bus.offer("kvp", UIO_DRIVER, monitor_id=9, relid=12)
    bus.set(instance, "state", "3")
    bus.set(instance, "driver_override", UIO_DRIVER)
    device = bus.find("kvp")
    assert device.relid == 12
    assert device.state == 3
    assert device.driver == device.override == UIO_DRIVER
    assert device.uio == "uio0"
    assert bus.node(device) == f"{bus.dev}/uio0"
    assert device.maps == (2 * device.ring_size, 4096, 4096)
    assert device.monitor_id == 9
    assert device.title == "kvp"


def test_what_the_kernel_does_not_say_is_none(bus) -> None:
    instance = bus.offer(SOME, class_guid=DYNAMIC_MEMORY)
    for key in ("id", "state", "driver_override"):
        (Path(bus.path(instance)) / key).unlink()
    device = bus.find(SOME)
    assert (device.relid, device.state, device.driver, device.override) == (None, None, None, None)
    assert (device.uio, device.maps, device.ring_size, device.monitor_id) == (None, (), None, None)
    assert bus.node(device) is None
    assert (device.service, device.title) == (None, "dynamic memory")


def test_attributes_that_make_no_sense_are_as_good_as_missing(bus) -> None:
    instance = bus.offer("kvp")
    bus.set(instance, "state", "opened")
    bus.set(instance, "id", "")
    assert (bus.find("kvp").state, bus.find("kvp").relid) == (None, None)


def test_monitor_id_255_is_none(bus) -> None:
    bus.offer("kvp", monitor_id=255)
    assert bus.find("kvp").monitor_id is None


def test_services_come_first_and_in_their_order(bus) -> None:
    bus.offer(SOME, class_guid=SCSI)
    for name in reversed(SERVICE_NAMES):
        bus.offer(name)
    assert [device.title for device in bus.devices()] == [*SERVICE_NAMES, "SCSI controller"]


def test_an_unknown_class_is_called_by_its_guid(bus) -> None:
    bus.offer(SOME, class_guid=OTHER)
    assert bus.find(SOME).title == OTHER


@pytest.mark.parametrize("name", ["kpv", "", "0e0b6031-5213", "../../etc", "kvp "])
def test_neither_a_service_nor_a_guid(bus, name: str) -> None:
    with pytest.raises(WrongNameError, match="shutdown, timesync"):
        bus.find(name)


def test_a_class_with_several_devices_is_not_enough(bus) -> None:
    bus.offer(SOME, class_guid=SCSI)
    bus.offer(OTHER, class_guid=SCSI)
    with pytest.raises(WrongNameError, match=f"{SOME}.*{OTHER}|{OTHER}.*{SOME}"):
        bus.find(SCSI)


@pytest.mark.parametrize("name", ["kvp", SOME])
def test_what_is_not_offered_is_not_found(bus, name: str) -> None:
    bus.offer("vss")
    with pytest.raises(DeviceNotFoundError, match="settings"):
        bus.find(name)


def test_an_instance_of_the_wrong_class_is_not_taken_for_the_service(bus) -> None:
    bus.offer("kvp", class_guid=SCSI)
    with pytest.raises(WrongDeviceError, match="GUID"):
        bus.find("kvp")


def test_off_hyper_v_everything_says_so(tmp_path: Path) -> None:
    bus = Bus(tmp_path, tmp_path)
    assert not bus.present
    for ask in (bus.devices, lambda: bus.find("kvp"), lambda: bus.read(SOME)):
        with pytest.raises(NotHyperVError, match="virtual host"):
            ask()


def test_a_device_that_goes_while_the_list_is_read_is_left_out(bus, monkeypatch) -> None:
    bus.offer("vss")
    bus.offer("kvp")
    read = bus.read

    def read_late(instance: str):
        if instance == BY_NAME["kvp"].instance_guid:
            bus.withdraw(instance)
        return read(instance)

    monkeypatch.setattr(bus, "read", read_late)
    assert [device.title for device in bus.devices()] == ["vss"]
