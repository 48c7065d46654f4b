# SPDX-License-Identifier: Apache-2.0
"""Taking devices for uio_hv_generic and giving them back, after a crash too (PROTOCOL §1.3)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hvring.transport.binding import Binder
from hvring.transport.errors import (
    BindFailedError,
    BindRefusedError,
    DeviceBusyError,
    DeviceError,
    DeviceNotFoundError,
    DevicePermissionError,
    DriverMissingError,
    NotHyperVError,
)
from hvring.transport.kernels import Kernel, parse, running
from hvring.transport.sysfs import UIO_DRIVER, Bus
from hvring.vmbus import BY_NAME
from hvring.vmbus.classes import DYNAMIC_MEMORY, FIBRE_CHANNEL, IDE, NETWORK, PCI, SCSI

SOME = "11223344-5566-7788-99aa-bbccddeeff00"
KVP = BY_NAME["kvp"].instance_guid


def kernel(release: str = "6.17.13") -> Kernel:
    return Kernel(release, parse(release))


@pytest.fixture
def binder(bus, tmp_path: Path) -> Callable[..., Binder]:
    bus.load(UIO_DRIVER)

    def make(**options: object) -> Binder:
        return Binder(bus, state=tmp_path / "run", **({"kernel": kernel()} | options))

    return make


def test_a_device_goes_from_its_driver_to_uio_and_back(bus, binder) -> None:
    bus.offer("kvp", "hv_utils")
    one = binder()
    device = one.bind("kvp")
    assert (device.driver, device.override, device.uio) == (UIO_DRIVER, UIO_DRIVER, "uio0")
    assert one.bound() == [KVP]
    device = one.unbind("kvp")
    assert (device.driver, device.override, device.uio) == ("hv_utils", None, None)
    assert one.bound() == []
    assert bus.written == [
        f"driver_override {KVP} uio_hv_generic",
        f"unbind hv_utils {KVP}",
        f"bind uio_hv_generic {KVP}",
        f"driver_override {KVP} ",
        f"unbind uio_hv_generic {KVP}",
        f"bind hv_utils {KVP}",
    ]


def test_both_are_harmless_when_done_before(bus, binder) -> None:
    bus.offer("kvp", "hv_utils")
    one = binder()
    one.bind("kvp")
    done = len(bus.written)
    assert one.bind("kvp").driver == UIO_DRIVER
    assert len(bus.written) == done
    one.unbind("kvp")
    done = len(bus.written)
    assert one.unbind("kvp").driver == "hv_utils"
    assert len(bus.written) == done


def test_the_origin_outlives_the_process(bus, binder) -> None:
    bus.offer("kvp", "hv_utils")
    bus.offer("vss", "hv_utils")
    bus.offer(SOME, "hv_balloon", class_guid=DYNAMIC_MEMORY)
    for name in ("kvp", "vss", SOME):
        binder().bind(name)
    later = binder()
    assert len(later.bound()) == 3
    for instance in later.bound():
        later.unbind(instance)
    assert [bus.find(name).driver for name in ("kvp", "vss", SOME)] == ["hv_utils", "hv_utils", "hv_balloon"]
    assert later.bound() == []


@pytest.mark.parametrize("stage", ["driver_override", "unbind", "bind"])
def test_a_crash_at_any_moment_can_be_undone(bus, binder, monkeypatch, stage: str) -> None:
    class Crash(BaseException):
        pass

    def crash(path: str, text: str) -> None:
        if os.path.basename(path) == stage:
            raise Crash
        write(path, text)

    bus.offer("kvp", "hv_utils")
    write = bus.write
    monkeypatch.setattr(bus, "write", crash)
    with pytest.raises(Crash):
        binder().bind("kvp")
    monkeypatch.undo()
    one = binder()
    assert one.bound() == [KVP], "written down before anything is changed"
    device = one.unbind(KVP)
    assert (device.driver, device.override) == ("hv_utils", None)


def test_a_device_without_a_driver_gets_none_back(bus, binder) -> None:
    bus.offer("fcopy")
    binder().bind("fcopy")
    assert binder().unbind("fcopy").driver is None


@pytest.mark.parametrize(("name", "back"), [("kvp", "hv_utils"), ("fcopy", None)])
def test_what_others_bound_goes_to_the_usual_driver(bus, binder, name: str, back: str | None) -> None:
    bus.load("hv_utils")
    bus.offer(name, UIO_DRIVER)
    assert binder().bound() == []
    assert binder().unbind(name).driver == back


def test_the_usual_driver_may_refuse(bus, binder) -> None:
    bus.load("hv_utils")
    bus.offer("kvp", UIO_DRIVER)
    bus.refuses["bind hv_utils"] = errno.ENODEV
    assert binder().unbind("kvp").driver is None


def test_a_driver_that_was_removed_meanwhile_is_no_error(bus, binder) -> None:
    bus.offer("kvp", "hv_utils")
    binder().bind("kvp")
    Path(bus.driver("hv_utils")).rmdir()
    assert binder().unbind("kvp").driver is None
    assert binder().bound() == []


def test_a_device_that_was_offered_anew_belongs_to_its_driver_already(bus, binder) -> None:
    bus.offer("kvp", "hv_utils")
    binder().bind("kvp")
    bus.withdraw(KVP)
    bus.offer("kvp", "hv_utils")
    done = len(bus.written)
    assert binder().unbind("kvp").driver == "hv_utils"
    assert bus.written[done:] == []
    assert binder().bound() == []


def test_a_device_that_is_gone_is_forgotten(bus, binder) -> None:
    bus.offer("kvp", "hv_utils")
    binder().bind("kvp")
    bus.withdraw(KVP)
    assert binder().unbind(KVP) is None
    assert binder().bound() == []


def test_a_device_that_is_open_is_not_unbound(bus, binder) -> None:
    bus.offer("kvp", "hv_utils")
    binder().bind("kvp")
    bus.set(KVP, "state", "3")
    done = len(bus.written)
    with pytest.raises(DeviceBusyError, match="stop it"):
        binder().unbind("kvp")
    assert bus.written[done:] == []
    assert binder().bound() == [KVP]


@pytest.mark.parametrize("class_guid", [SCSI, IDE, FIBRE_CHANNEL, PCI])
def test_disks_are_not_taken(bus, binder, class_guid: str) -> None:
    bus.offer(SOME, "hv_storvsc", class_guid=class_guid)
    with pytest.raises(BindRefusedError, match="disks"):
        binder().bind(SOME, force=True)
    assert bus.written == []


def _adapter(bus, instance: str, name: str, master: bool = False) -> None:
    path = Path(bus.path(instance)) / "net" / name
    path.mkdir(parents=True)
    (path / "device").symlink_to(bus.path(instance))
    if master:
        (path / "master").symlink_to(path)
    (Path(bus.sysfs) / "class" / "net" / name).symlink_to(path)


def test_the_only_network_adapter_is_not_taken_but_one_of_two_is(bus, binder) -> None:
    bus.offer(SOME, "hv_netvsc", class_guid=NETWORK, monitor_id=3)
    _adapter(bus, SOME, "eth0")
    (Path(bus.sysfs) / "class" / "net" / "lo").mkdir()  # no hardware
    function = SOME.replace("1122", "aaaa")
    bus.offer(function, class_guid=PCI)
    _adapter(bus, function, "enP1s0", master=True)  # a virtual function below eth0
    with pytest.raises(BindRefusedError, match="only network adapter"):
        binder().bind(SOME)
    other = SOME.replace("1122", "2233")
    bus.offer(other, "hv_netvsc", class_guid=NETWORK, monitor_id=4)
    _adapter(bus, other, "eth1")
    assert binder().bind(SOME).driver == UIO_DRIVER


def test_a_kernel_that_may_panic_is_refused_unless_forced(bus, binder) -> None:
    bus.offer("kvp", "hv_utils")
    one = binder(kernel=kernel("6.12.57+deb13-amd64"))
    with pytest.raises(BindRefusedError, match="--force"):
        one.bind("kvp")
    assert bus.written == []
    assert one.bind("kvp", force=True).driver == UIO_DRIVER


SERIES = {
    # the last that masks itself, the first and the last that may panic, the first that does not any more
    "5.4": (300, 301, 301, 302),
    "5.10": (245, 246, 246, 247),
    "5.15": (194, 195, 196, 197),
    "6.1": (155, 156, 158, 159),
    "6.6": (111, 112, 117, 118),
    "6.12": (52, 53, 58, 59),
}


@pytest.mark.parametrize("series", SERIES)
def test_the_edges_of_the_kernels_that_may_panic(bus, binder, series: str) -> None:
    bus.offer("kvp", "hv_utils", monitor_id=3)
    before, first, last, cured = (kernel(f"{series}.{level}") for level in SERIES[series])
    assert (before.may_panic, before.masks_itself) == (False, True)
    assert (cured.may_panic, cured.masks_itself) == (False, False)
    for bad in (first, last):
        with pytest.raises(BindRefusedError, match=rf"install {cured.name} or newer, or insist with --force"):
            binder(kernel=bad).bind("kvp")
    assert bus.written == []
    for good in (before, cured):
        assert binder(kernel=good).bind("kvp").driver == UIO_DRIVER
        binder(kernel=good).unbind("kvp")


@pytest.mark.parametrize("release", ["6.8.12", "6.13.1", "6.16.12", "6.17.2", "6.17.3", "6.18.0", "7.0.1"])
def test_no_other_series_got_half_of_the_patches(release: str) -> None:
    one = kernel(release)
    assert not one.may_panic
    assert one.cured_by is None
    assert one.masks_itself == (parse(release) < (6, 17, 3))


@pytest.mark.parametrize(
    ("file", "text", "release"),
    [
        ("version_signature", "Ubuntu 6.8.0-31.31-generic 6.8.1\n", (6, 8, 1)),
        (
            "version",
            "Linux version 6.1.0-41-amd64 (a@b) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0) "
            "#1 SMP PREEMPT_DYNAMIC Debian 6.1.158-1 (2025-11-09)\n",
            (6, 1, 158),
        ),
        ("version", "Linux version 6.12.57\n", parse(os.uname().release)),
        ("version_signature", "", parse(os.uname().release)),
        ("other", "", parse(os.uname().release)),
    ],
)
def test_distributions_hide_the_upstream_release_in_their_names(tmp_path, file, text, release) -> None:
    (tmp_path / file).write_text(text)
    assert running(tmp_path).release == release
    assert running(tmp_path).name == os.uname().release


def test_an_old_kernel_is_refused_except_for_monitored_channels(bus, binder) -> None:
    bus.offer("kvp", "hv_utils")
    bus.offer("vss", "hv_utils", monitor_id=3)
    one = binder(kernel=kernel("6.1.0-50-cloud-amd64"))
    with pytest.raises(BindRefusedError, match=r"6\.10"):
        one.bind("kvp")
    assert one.bind("vss").driver == UIO_DRIVER


def test_the_module_is_loaded_if_need_be(bus, tmp_path: Path) -> None:
    bus.offer("kvp", "hv_utils")
    asked: list[str] = []

    def load(name: str) -> bool:
        asked.append(name)
        return bus.load(name)

    assert Binder(bus, state=tmp_path / "run", load=load, kernel=kernel()).bind("kvp").driver == UIO_DRIVER
    assert asked == [UIO_DRIVER]


@pytest.mark.parametrize("answer", [False, True])
def test_a_module_that_cannot_be_loaded_is_said_and_nothing_is_changed(bus, tmp_path, answer: bool) -> None:
    bus.offer("kvp", "hv_utils")
    one = Binder(bus, state=tmp_path / "run", load=lambda name: answer, kernel=kernel())
    with pytest.raises(DriverMissingError, match="modprobe"):
        one.bind("kvp")
    assert bus.find("kvp").driver == "hv_utils"
    assert one.bound() == []


def test_a_module_that_takes_the_device_as_it_is_loaded(bus, tmp_path) -> None:
    bus.offer("fcopy")

    def load(name: str) -> bool:
        bus.attach(BY_NAME["fcopy"].instance_guid, name)
        return True

    assert Binder(bus, state=tmp_path / "run", load=load, kernel=kernel()).bind("fcopy").driver == UIO_DRIVER
    assert bus.written == []


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (524, BindFailedError, r"6\.10"),
        (errno.ENOMEM, BindFailedError, "compact_memory"),
        (errno.EINVAL, BindFailedError, "dmesg"),
        (errno.EBUSY, DeviceBusyError, "again"),
        (errno.EACCES, DevicePermissionError, "root"),
        (errno.EROFS, DevicePermissionError, "writable"),
        (errno.ENOENT, BindFailedError, "dmesg"),
    ],
)
def test_what_the_kernel_refuses_is_put_in_words_and_undone(
    bus, binder, number: int, kind: type[DeviceError], says: str
) -> None:
    bus.offer("kvp", "hv_utils")
    bus.refuses[f"bind {UIO_DRIVER}"] = number
    with pytest.raises(kind, match=says):
        binder().bind("kvp")
    device = bus.find("kvp")
    assert (device.driver, device.override) == ("hv_utils", None)
    assert binder().bound() == []


def test_a_device_that_goes_meanwhile(bus, binder, monkeypatch) -> None:
    bus.offer("kvp", "hv_utils")
    write = bus.write

    def late(path: str, text: str) -> None:
        if os.path.basename(path) == "driver_override" and os.path.exists(path):
            bus.withdraw(KVP)
        write(path, text)

    monkeypatch.setattr(bus, "write", late)
    with pytest.raises(DeviceNotFoundError, match="hvring devices"):
        binder().bind("kvp")
    assert binder().bound() == []


def test_a_state_directory_that_cannot_be_written(bus) -> None:
    bus.load(UIO_DRIVER)
    bus.offer("kvp", "hv_utils")
    with pytest.raises(DeviceError, match="/dev/null/run"):
        Binder(bus, state="/dev/null/run", kernel=kernel()).bind("kvp")
    assert bus.written == []


def test_another_process_that_hangs_while_it_binds_is_not_waited_for_for_ever(bus, binder, tmp_path) -> None:
    bus.offer("kvp", "hv_utils")
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run/lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for do in (binder(lock_timeout=0).bind, binder(lock_timeout=0.05).unbind):
            with pytest.raises(DeviceBusyError, match="lock"):
                do("kvp")
        assert bus.written == []
        free = threading.Timer(0.05, fcntl.flock, (other, fcntl.LOCK_UN))
        free.start()
        assert binder(lock_timeout=1000).bind("kvp").driver == UIO_DRIVER
        free.join()


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_broken_file_of_origins_is_as_good_as_none(bus, binder, tmp_path: Path, text: str) -> None:
    bus.offer("kvp", "hv_utils")
    one = binder()
    one.bind("kvp")
    (tmp_path / "run" / "bound.json").write_text(text)
    assert one.bound() == []
    assert one.unbind("kvp").driver == "hv_utils"


def test_the_file_of_origins_is_plain(bus, binder, tmp_path: Path) -> None:
    bus.offer("kvp", "hv_utils")
    binder().bind("kvp")
    assert json.loads((tmp_path / "run" / "bound.json").read_text()) == {KVP: "hv_utils"}


def test_off_hyper_v_nothing_is_asked_and_nothing_made(tmp_path: Path) -> None:
    one = Binder(Bus(tmp_path, tmp_path), state=tmp_path / "run", kernel=kernel())
    with pytest.raises(NotHyperVError):
        one.bind("kvp")
    assert one.bound() == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "release", "takes", "panics", "masks"),
    [
        ("6.1.0-50-cloud-amd64", (6, 1, 0), False, False, True),
        ("6.12.43+deb12-cloud-amd64", (6, 12, 43), True, False, True),
        ("6.12.57+deb13-cloud-amd64", (6, 12, 57), True, True, False),
        ("6.12.107+deb13-cloud-amd64", (6, 12, 107), True, False, False),
        ("6.1.158", (6, 1, 158), False, True, False),
        ("6.17.13", (6, 17, 13), True, False, False),
        ("7.3-rc1", (7, 3, 0), True, False, False),
        ("custom", (0, 0, 0), False, False, True),
    ],
)
def test_what_is_assumed_of_a_kernel(text: str, release, takes: bool, panics: bool, masks: bool) -> None:
    one = kernel(text)
    assert (one.release, one.takes_services, one.may_panic, one.masks_itself) == (
        release,
        takes,
        panics,
        masks,
    )


def test_what_a_service_costs() -> None:
    two_mib = 2 << 20
    assert kernel("6.12.107").memory_per_service(two_mib) == 51 << 20
    assert kernel("6.17.13").memory_per_service(two_mib) == 4 << 20
