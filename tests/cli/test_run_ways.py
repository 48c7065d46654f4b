# SPDX-License-Identifier: Apache-2.0
"""``hvring run`` on a VMBus of files: which services by which way, what is bound for it, and what goes back."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from hvring.agent.channel import Opener
from hvring.cli import main
from hvring.cli.run_ways import chosen_services
from hvring.daemon.signals import ending_signals
from hvring.guest.holders import Holder
from hvring.transport import kernels, modules, uevents, utils
from hvring.transport.binding import Binder
from hvring.transport.errors import BindFailedError, BindRefusedError, NotBoundError, WrongNameError
from hvring.transport.kernels import Kernel, parse
from hvring.transport.sysfs import UIO_DRIVER
from hvring.transport.ways import Via
from hvring.vmbus import BY_NAME

KVP = BY_NAME["kvp"].instance_guid


@pytest.fixture
def binder(here, tmp_path: Path) -> Binder:
    return Binder(here, state=tmp_path / "run")


def _chosen(
    binder: Binder, *names: str, bind: bool = False, via: Via = Via.AUTO
) -> tuple[list[str], list[tuple[str, str]]]:
    """The services that would be served, and what is told before any is opened."""
    told: list[tuple[str, str]] = []
    with chosen_services(list(names), bind, via, lambda what, name, _: told.append((what, name)), binder) as (
        serving,
        _,
    ):
        return serving, told


def test_without_names_what_can_be_served_is_and_the_rest_stays_with_the_kernel(here, binder) -> None:
    for name in ("shutdown", "timesync", "heartbeat", "kvp", "vss"):
        here.offer(name, "hv_utils")
    kept = [("kernel", name) for name in ("shutdown", "timesync", "heartbeat")]
    assert _chosen(binder) == (["kvp", "vss", "fcopy"], kept)
    assert _chosen(binder, via=Via.UTILS) == (["kvp", "vss", "fcopy"], kept)
    here.detach(KVP)
    here.attach(KVP, UIO_DRIVER)
    assert _chosen(binder) == (["kvp", "vss", "fcopy"], kept)
    assert _chosen(binder, via=Via.UIO) == (["kvp"], [*kept, ("kernel", "vss")])
    assert here.written == []


@pytest.mark.parametrize("via", list(Via))
def test_where_nothing_can_be_served_it_is_said_what_to_do(here, binder, via) -> None:
    here.offer("heartbeat", "hv_utils")
    with pytest.raises(NotBoundError, match="hvring bind"):
        _chosen(binder, via=via)


def test_with_bind_what_this_kernel_does_not_give_away_is_served_by_the_other_way_or_left(here) -> None:
    old = Binder(here, state=os.path.join(here.sysfs, "run"), kernel=Kernel("6.1.0-41", (6, 1, 158)))
    for name in ("heartbeat", "kvp", "vss"):
        here.offer(name, "hv_utils")
    assert _chosen(old, bind=True) == (
        ["kvp", "vss"],
        [("kernel", "heartbeat"), ("utils", "kvp"), ("utils", "vss")],
    )
    with pytest.raises(BindRefusedError, match="or newer is needed"):
        _chosen(old, "heartbeat", bind=True)
    with pytest.raises(BindRefusedError, match="or newer is needed"):
        _chosen(old, bind=True, via=Via.UIO)
    assert here.written == []


class Registered:
    """hv_utils' device as far as an opening goes; ``answers``: the errors of the next openings, by their numbers."""

    answers: ClassVar[list[int]] = []
    opened: ClassVar[list[str]] = []

    def __init__(self, path: str) -> None:
        if not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self.answers:
            number = self.answers.pop(0)
            raise OSError(number, os.strerror(number))
        self.opened.append(os.path.basename(path))
        self.said = {"hv_vss": b"\x81\0\0\0", "hv_fcopy": b"\1\0\0\0"}.get(
            self.opened[-1], bytes([100, 0, 0, 0]).ljust(7432, b"\0")
        )

    def fileno(self) -> int:
        raise AssertionError("nobody waits for it here")

    def poll(self) -> int:
        return select.POLLIN

    def read(self, size: int) -> bytes:
        return self.said

    def write(self, data: bytes) -> int:
        return len(data)

    def close(self) -> None:
        pass


@pytest.fixture
def handed_out(here, monkeypatch) -> Callable[[str], None]:
    """``handed_out(service)``: hv_utils has its node."""
    Registered.answers, Registered.opened = [], []
    monkeypatch.setattr(utils, "NodeFile", Registered)
    monkeypatch.setattr(uevents, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(uevents, "LOOK_RARELY", 0.01)

    def hand_out(name: str) -> None:
        os.makedirs(os.path.dirname(here.utils_node(name)), exist_ok=True)
        Path(here.utils_node(name)).touch()

    return hand_out


def _open(binder: Binder, *names: str, bind: bool = False, via: Via = Via.AUTO, before=None) -> list[str]:
    """What is told while these are opened; ``before(told)`` runs at each look of whoever waits."""
    told: list[str] = []

    async def main(opener: Opener) -> None:
        for name in names:
            (await opener(name)).close()

    def tell(what: str, name: str, detail: str) -> None:
        told.append(f"{name}: {what} {detail}")
        if before is not None:
            before()

    with chosen_services(list(names), bind, via, tell, binder) as (_, opener):
        asyncio.run(main(opener))
    return told


def test_what_is_bound_goes_over_uio_and_what_is_handed_out_over_its_node(here, binder, handed_out) -> None:
    here.offer("kvp", UIO_DRIVER)
    here.offer("vss", "hv_utils")
    handed_out("vss")
    assert _open(binder, "kvp", "vss") == []
    assert Registered.opened == ["hv_vss"]
    assert here.written == []


def test_a_node_that_comes_later_is_waited_for_and_the_wait_is_told_once(here, binder, handed_out) -> None:
    here.offer("kvp")

    def come() -> None:
        here.attach(KVP, "hv_utils")
        handed_out("kvp")

    told = _open(binder, "kvp", before=come)
    assert len(told) == 1
    assert told[0].startswith("kvp: waiting no driver has kvp: load hv_utils")
    assert Registered.opened == ["hv_kvp"]
    assert here.written == []


def test_a_daemon_that_has_the_device_is_named_with_its_unit_and_what_stops_it(
    here, binder, handed_out, monkeypatch
) -> None:
    holder = Holder(7, "hv_kvp_daemon", "hv-kvp-daemon.service")
    monkeypatch.setattr(utils, "holders", lambda paths: [holder])
    here.offer("kvp", "hv_utils")
    handed_out("kvp")
    Registered.answers += [errno.EBUSY] * 5
    told = _open(binder, "kvp")
    assert len(told) == 1, "told once, however often it is looked"
    assert "hv_kvp_daemon (process 7, hv-kvp-daemon.service) has" in told[0]
    assert "`systemctl mask --now hv-kvp-daemon.service`" in told[0]
    assert Registered.opened == ["hv_kvp"], "and taken when it is free"


def test_file_copy_that_no_driver_takes_is_bound_and_given_back(here, binder, handed_out) -> None:
    here.load("hv_utils")
    instance = here.offer("fcopy")
    assert _open(binder, "fcopy") == []
    assert f"bind {UIO_DRIVER} {instance}" in here.written
    assert here.find("fcopy").driver is None
    assert here.find("fcopy").override is None
    assert binder.bound() == []


@pytest.fixture
def modules_say(monkeypatch) -> Callable[[str, str], None]:
    """``modules_say(release, service)``: a kernel whose hv_utils drives this service and no other."""

    def say(release: str, service: str) -> None:
        def claims(name: str, class_guid: str, running: str) -> bool | None:
            assert (name, running) == ("hv_utils", release)
            return class_guid == BY_NAME[service].class_guid

        monkeypatch.setattr(modules, "claims", claims)
        monkeypatch.setattr(kernels, "running", lambda: Kernel(release, parse(release)))

    return say


def test_a_kernel_that_left_file_copy_alone_is_believed_whatever_its_number(
    here, handed_out, tmp_path, modules_say
) -> None:
    modules_say("5.14.0-611.el9", "kvp")
    here.load("hv_utils")
    here.offer("fcopy")
    assert _open(Binder(here, state=tmp_path / "run"), "fcopy") == []
    assert Registered.opened == []


@pytest.mark.parametrize(
    ("release", "name"), [("6.12.117", "kvp"), ("6.12.117", "vss"), ("6.1.176", "fcopy")]
)
def test_a_device_between_an_unbind_and_a_bind_is_not_taken_from_who_does_that(
    here, handed_out, tmp_path, modules_say, release: str, name: str
) -> None:
    modules_say(release, "fcopy")
    here.load("hv_utils")
    instance = here.offer(name)
    looks = []

    def come() -> None:
        looks.append(here.find(name).driver)
        here.attach(instance, "hv_utils")
        handed_out(name)

    told = _open(Binder(here, state=tmp_path / "run"), name, before=come)
    assert len(told) == 1
    assert looks == [None]
    assert here.written == []
    assert Registered.opened == [f"hv_{name}"]


def test_a_device_that_old_kernels_do_not_give_away_is_waited_for_when_its_driver_lets_it_go(
    here, handed_out, tmp_path
) -> None:
    old = Binder(here, state=tmp_path / "run", kernel=Kernel("6.1.0-41", (6, 1, 158)))
    here.load("hv_utils")
    here.offer("kvp")

    def come() -> None:
        here.attach(KVP, "hv_utils")
        handed_out("kvp")

    told = _open(old, "kvp", before=come)
    assert [line.partition(":")[2].split()[0] for line in told] == ["waiting"]
    assert Registered.opened == ["hv_kvp"]


def test_with_bind_a_service_that_comes_back_to_a_kernel_which_keeps_it_goes_over_its_node(
    here, handed_out, tmp_path
) -> None:
    old = Binder(here, state=tmp_path / "run", kernel=Kernel("6.1.0-41", (6, 1, 158)))
    here.offer("vss", "hv_utils")
    handed_out("vss")

    def come() -> None:
        if not os.path.exists(here.path(KVP)):
            here.offer("kvp", "hv_utils")
            handed_out("kvp")

    told = _open(old, "kvp", "vss", bind=True, before=come)
    assert [line.partition(" the")[0] for line in told][:1] == ["kvp: waiting"]
    assert Registered.opened == ["hv_kvp", "hv_vss"]


@pytest.mark.parametrize("name", ["shutdown", "timesync", "heartbeat"])
def test_what_the_kernel_answers_itself_is_not_to_be_had_over_its_devices(
    here, binder, handed_out, name
) -> None:
    here.offer(name, "hv_utils")
    with pytest.raises(WrongNameError, match="hands nothing"):
        _open(binder, name, via=Via.UTILS)


def test_only_one_of_bind_and_the_devices_of_hv_utils(capsys) -> None:
    assert main(["run", "--bind", "--via", "utils"]) == 2
    assert "use one" in capsys.readouterr().err


def test_run_with_bind_takes_all_but_timesync_and_gives_back_what_it_took(here, binder) -> None:
    for name in ("timesync", "kvp", "vss"):
        here.offer(name, "hv_utils")
    binder.bind("vss")
    told: list[tuple[str, str]] = []
    with chosen_services([], True, Via.AUTO, lambda what, name, _: told.append((what, name)), binder) as (
        serving,
        _,
    ):
        assert serving == ["kvp", "vss"]
        assert here.find("kvp").driver == UIO_DRIVER
        assert here.find("timesync").driver == "hv_utils"
    assert told == [("bound", "kvp"), ("bound", "vss")]
    assert here.find("kvp").driver == "hv_utils"
    assert here.find("vss").driver == UIO_DRIVER, "it was bound before"


def _on_binding(here, monkeypatch, act: Callable[[], object], *, of: str) -> None:
    """``act`` whenever a device is bound to this driver, in the middle of it."""
    write = here.write

    def slow(path: str, text: str) -> None:
        if path == f"{here.driver(of)}/bind":
            act()
        write(path, text)

    monkeypatch.setattr(here, "write", slow)


def test_a_signal_while_a_device_is_bound_comes_after_that_and_everything_goes_back(
    here, binder, monkeypatch
) -> None:
    here.offer("kvp", "hv_utils")
    here.offer("vss", "hv_utils")
    _on_binding(here, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM), of=UIO_DRIVER)
    with ending_signals(), chosen_services(["kvp", "vss"], True, Via.AUTO, lambda *_: None, binder):
        raise AssertionError("never came here")
    assert [here.find(name).driver for name in ("kvp", "vss")] == ["hv_utils", "hv_utils"]
    assert f"bind {UIO_DRIVER} {KVP}" in here.written
    assert f"bind {UIO_DRIVER} {BY_NAME['vss'].instance_guid}" not in here.written
    assert binder.bound() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_while_devices_are_given_back_comes_after_that(
    here, binder, monkeypatch, number: int
) -> None:
    class Stop(Exception):
        pass

    for name in ("kvp", "vss", "fcopy"):
        here.offer(name, "hv_utils")
    _on_binding(here, monkeypatch, lambda: os.kill(os.getpid(), number), of="hv_utils")
    with ending_signals(), chosen_services(["kvp", "vss", "fcopy"], True, Via.AUTO, lambda *_: None, binder):
        raise Stop
    assert [here.find(name).driver for name in ("kvp", "vss", "fcopy")] == ["hv_utils"] * 3
    assert binder.bound() == []


def test_a_kernel_that_is_slow_to_give_a_device_away_holds_up_nobody_else(here, binder, monkeypatch) -> None:
    let_go, asked = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        assert let_go.wait(60)

    async def main(opener: Opener) -> None:
        here.withdraw(KVP)
        here.offer("kvp", "hv_utils")  # the host offers it anew, and the kernel's driver takes it
        _on_binding(here, monkeypatch, wait, of=UIO_DRIVER)
        opening = asyncio.ensure_future(opener("kvp"))
        while not asked.is_set():
            await asyncio.sleep(0)
        (await opener("vss")).close()  # the loop goes on
        assert not opening.done()
        let_go.set()
        (await opening).close()

    here.offer("kvp", "hv_utils")
    here.offer("vss", "hv_utils")
    with chosen_services(["kvp", "vss"], True, Via.AUTO, lambda *_: None, binder) as (_, opener):
        asyncio.run(main(opener))
    assert [here.find(name).driver for name in ("kvp", "vss")] == ["hv_utils", "hv_utils"]


def test_what_is_being_bound_at_the_end_goes_back_too(here, binder, monkeypatch) -> None:
    asked, late = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        assert late.wait(60)

    async def main(opener: Opener) -> None:
        here.offer("kvp", "hv_utils")
        _on_binding(here, monkeypatch, wait, of=UIO_DRIVER)
        opening = asyncio.ensure_future(opener("kvp"))
        while not asked.is_set():
            await asyncio.sleep(0)
        opening.cancel()
        threading.Timer(0.05, late.set).start()

    with chosen_services(["kvp"], True, Via.AUTO, lambda *_: None, binder) as (_, opener):
        asyncio.run(main(opener))
    assert here.find("kvp").driver == "hv_utils"
    assert binder.bound() == []


def test_a_device_that_no_thread_can_bind_now_is_tried_again(here, binder, monkeypatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with chosen_services(["kvp"], True, Via.AUTO, lambda *_: None, binder) as (_, opener):
        here.offer("kvp", "hv_utils")
        monkeypatch.setattr(threading.Thread, "start", refuse)
        # An OSError does not end a service, and what was never started is not waited for.
        with pytest.raises(OSError, match="can't start new thread"):
            asyncio.run(opener("kvp"))


def test_what_a_binding_raises_comes_to_whoever_opens(here, binder) -> None:
    here.offer("kvp", "hv_utils")
    with chosen_services(["kvp", "vss"], True, Via.AUTO, lambda *_: None, binder) as (_, opener):
        here.offer("vss", "hv_utils")
        here.refuses[f"bind {UIO_DRIVER}"] = errno.EINVAL
        with pytest.raises(BindFailedError):
            asyncio.run(opener("vss"))
    assert [here.find(name).driver for name in ("kvp", "vss")] == ["hv_utils", "hv_utils"]


def test_run_with_bind_opens_what_it_bound_and_gives_back_after_an_error_too(here, binder) -> None:
    class Stop(Exception):
        pass

    async def opened(opener: Opener) -> None:
        (await opener("kvp")).close()
        here.offer("vss", "hv_utils")  # offered only now, to the kernel's driver
        (await opener("vss")).close()

    here.offer("kvp", "hv_utils")
    with (
        pytest.raises(Stop),
        chosen_services(["kvp", "vss"], True, Via.AUTO, lambda *_: None, binder) as (_, opener),
    ):
        asyncio.run(opened(opener))
        raise Stop
    assert [here.find(name).driver for name in ("kvp", "vss")] == ["hv_utils", "hv_utils"]
