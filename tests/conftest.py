# SPDX-License-Identifier: Apache-2.0
"""A VMBus of files: what sysfs shows, and a kernel that does what is written to it (PROTOCOL §1.2, §1.3)."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from hvring.errors import EndpointError
from hvring.host.client import ControlClient
from hvring.transport.sysfs import UIO_DRIVER, Bus
from hvring.vmbus import BY_NAME

# How long an example takes depends on what else this machine does.
settings.register_profile("hvring", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hvring")

PAGE = os.sysconf("SC_PAGE_SIZE")
RING = 4 * PAGE


class FakeBus(Bus):
    """``refuses``: the kernel's answer (errno) to a write to ``FILE DRIVER``; ``written``: all writes, as text."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "sys", root / "dev")
        self.refuses: dict[str, int] = {}
        self.written: list[str] = []
        self.late_nodes = False
        self._nodes = 0
        for path in (
            "sys/bus/vmbus/devices",
            "sys/bus/vmbus/drivers",
            "sys/class/uio",
            "sys/class/net",
            "dev",
        ):
            (root / path).mkdir(parents=True)

    def load(self, name: str) -> bool:
        Path(self.driver(name)).mkdir()
        return True

    def offer(
        self,
        name: str,
        driver: str | None = None,
        *,
        class_guid: str | None = None,
        monitor_id: int | None = None,
        relid: int = 7,
    ) -> str:
        """A new device; ``name`` is a service or an instance GUID."""
        ids = BY_NAME.get(name)
        instance = ids.instance_guid if ids else name
        path = Path(self.path(instance))
        path.mkdir()
        guid = class_guid or (ids.class_guid if ids else "")
        for key, text in {
            "class_id": f"{{{guid}}}",
            "device_id": f"{{{instance}}}",
            "id": str(relid),
            "state": "0",
            "driver_override": "(null)",
        }.items():
            (path / key).write_text(f"{text}\n")
        if monitor_id is not None:
            (path / "monitor_id").write_text(f"{monitor_id}\n")
        if driver is not None:
            self.attach(instance, driver)
        return instance

    def withdraw(self, instance: str) -> None:
        self.detach(instance)
        shutil.rmtree(self.path(instance))

    def set(self, instance: str, key: str, text: str) -> None:
        (Path(self.path(instance)) / key).write_text(f"{text}\n")

    def attach(self, instance: str, driver: str) -> None:
        path = Path(self.path(instance))
        if not Path(self.driver(driver)).exists():
            self.load(driver)
        (path / "driver").symlink_to(self.driver(driver))
        if driver != UIO_DRIVER:
            self.set(instance, "state", "3")  # hv_utils and the like open at once
            return
        self.set(instance, "state", "2")
        if not self.late_nodes:
            self.add_node(instance)

    def add_node(self, instance: str) -> str:
        node = f"uio{self._nodes}"
        self._nodes += 1
        maps = Path(self.path(instance)) / "uio" / node / "maps"
        for n, (name, size) in enumerate(
            (("txrx_rings", 2 * RING), ("int_page", 4096), ("monitor_page", 4096))
        ):
            (maps / f"map{n}").mkdir(parents=True)
            (maps / f"map{n}" / "name").write_text(f"{name}\n")
            (maps / f"map{n}" / "size").write_text(f"{size:#x}\n")
            (maps / f"map{n}" / "offset").write_text("0x0\n")
        (Path(self.sysfs) / "class" / "uio" / node).symlink_to(maps.parent)
        (Path(self.dev) / node).write_bytes(bytes(2 * RING))
        return node

    def detach(self, instance: str) -> None:
        path = Path(self.path(instance))
        (path / "driver").unlink(missing_ok=True)
        self.set(instance, "state", "2")
        for node in os.listdir(path / "uio") if (path / "uio").exists() else []:
            (Path(self.sysfs) / "class" / "uio" / node).unlink()
            (Path(self.dev) / node).unlink(missing_ok=True)
            shutil.rmtree(path / "uio")

    def write(self, path: str, text: str) -> None:
        directory, key = os.path.split(path)
        owner = os.path.basename(directory)
        self.written.append(f"{key} {owner} {text.strip()}")
        answer = self.refuses.get(f"{key} {owner}")
        if answer is not None:
            raise OSError(answer, os.strerror(answer))
        if not os.path.exists(directory):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if key == "driver_override":
            self.set(owner, key, text.strip() or "(null)")
        elif key == "unbind":
            self.detach(text)
        elif key == "bind":
            override = (Path(self.path(text)) / "driver_override").read_text().strip()
            if override not in ("(null)", owner):
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            self.attach(text, owner)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[FakeBus]:
    """Empty; offer devices."""
    return FakeBus(tmp_path)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of this test's own, which is gone with all that is in it afterwards.

    Two managers in one group would share the groups of their units, and stop each other's processes.
    """
    with open("/proc/self/cgroup", encoding="utf-8") as lines:
        own = next((line.rstrip("\n")[3:] for line in lines if line.startswith("0::")), None)
    roots = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
    places = [Path(f"{root}{own}") for root in roots if os.path.exists(f"{root}/cgroup.procs")]
    if own is None or not places:
        pytest.skip("no unified hierarchy of control groups")
    made = places[0] / f"hvring-test-{os.getpid()}"
    try:
        made.mkdir()
    except OSError as problem:
        pytest.skip(f"no control group of one's own: {problem}")
    try:
        yield made
    finally:
        (made / "cgroup.kill").write_text("1")
        for folder, _, _ in os.walk(made, topdown=False):
            with open(f"{folder}/cgroup.events", encoding="ascii") as events:
                changed = select.poll()
                changed.register(events, select.POLLPRI)
                while "populated 0" not in events.read():
                    assert changed.poll(30_000), f"{folder} does not get empty"
                    events.seek(0)
            os.rmdir(folder)


@pytest.fixture
def shm_unit() -> Iterator[int]:
    """A unit of NTP's shared memory that no other program and no other run of the tests has; given back afterwards."""
    from hvring.guest.time_feed.ntp_shm import KEY

    libc = ctypes.CDLL(None, use_errno=True)
    for unit in range(255, 100, -1):
        with socket.socket(socket.AF_UNIX) as mine, suppress(OSError):
            mine.bind(f"\0hvring-test-shm-{unit}")  # gone with this process, whatever becomes of it
            if libc.shmget(KEY + unit, 0, 0) < 0 and ctypes.get_errno() == errno.ENOENT:
                yield unit
                found = libc.shmget(KEY + unit, 0, 0)
                assert found < 0 or libc.shmctl(found, 0, None) == 0  # IPC_RMID
                return
    pytest.skip("no unit is free")


@pytest.fixture
def frozen_by() -> Callable[[ControlClient], AbstractContextManager[None]]:
    """While it lasts the host keeps a backup's file systems frozen; at the end it goes away."""

    @contextmanager
    def frozen_by(host: ControlClient) -> Iterator[None]:
        frozen = threading.Event()

        def back_up() -> None:
            with suppress(EndpointError):  # until the host is told that nobody wants it any more
                host.request("backup", lambda _: frozen.set(), hold=600)

        backup = threading.Thread(target=back_up)
        backup.start()
        try:
            assert frozen.wait(60)
            yield
        finally:
            host._socket.shutdown(socket.SHUT_RDWR)
            backup.join()

    return frozen_by
