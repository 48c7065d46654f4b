# SPDX-License-Identifier: Apache-2.0
"""The agent against the virtual host: six services on one loop, lost and found channels, clean ends."""

from __future__ import annotations

import asyncio
import gc
import os
import struct
import threading
from collections.abc import Callable
from functools import partial

import pytest

from hvring import ChannelRescindedError, serve
from hvring.agent import Agent, Effects, HeartbeatSettings, Settings, ShutdownSettings, standard_services
from hvring.channel import Channel
from hvring.errors import EndpointError, HvringError, RingCorruptError
from hvring.events import EventKind
from hvring.guest.pools import PoolStore
from hvring.guest.power import PowerAction, RehearsedPower, ShutdownOrder
from hvring.host import GuestStatusError, VirtualHost
from hvring.ic.heartbeat import ApplicationState
from hvring.news import BURST
from hvring.pending import Steps, Wait
from hvring.services import Heartbeat, Kvp, Service, Shutdown
from hvring.transport.virtual import connect, connect_async
from hvring.vmbus import SERVICE_NAMES


def run(work) -> object:
    async def bounded() -> object:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(bounded())


def test_all_six_services_do_their_work(both) -> None:
    async def main() -> None:
        orders: list[ShutdownOrder] = []
        healthy = HeartbeatSettings(lambda: ApplicationState.HEALTHY)
        async with both(shutdown=ShutdownSettings(on_request=orders.append), heartbeat=healthy) as pair:
            host = pair.host
            await host.kvp.set("key", "välue")
            assert await host.kvp.get("key") == "välue"
            assert PoolStore(pair.pools).get(0, "key") == "välue"
            await host.fcopy.copy(b"contents" * 5000, str(pair.files), name="naïve 😀.txt")
            assert (pair.files / "naïve 😀.txt").read_bytes() == b"contents" * 5000
            report = await host.vss.backup()
            assert report.frozen_seconds > 0
            assert (await host.heartbeat.beat()).state == ApplicationState.HEALTHY
            await host.timesync.sync()
            await host.shutdown.request(restart=True, reason=7, timeout=30, text="now")
            assert orders == [ShutdownOrder(PowerAction.RESTART, False, 7, 30, "now")]
            assert host.violations == []
            for name, line in pair.agent.stats().items():
                assert line["open"], name
                assert line["counters"]["failed"] == line["counters"]["silent"] == 0
                assert line["channel"]["packets_received"] == line["counters"]["requests"]
            assert pair.kinds("timesync") == [EventKind.OPENED, EventKind.NEGOTIATED]
            assert pair.kinds("heartbeat") == [EventKind.OPENED, EventKind.NEGOTIATED, EventKind.CHANGED]
            assert pair.kinds("shutdown")[2:] == [EventKind.ASKED, EventKind.CHANGED]
            assert pair.kinds("kvp")[2:] == [EventKind.CHANGED]

    run(main())


def test_a_shutdown_is_begun_before_its_answer_and_let_go_after_it(both) -> None:
    async def main() -> None:
        done: list[tuple[str, int]] = []

        def look(what: str) -> None:
            # the host's coroutine has not run yet, but its answer must already be on the ring
            done.append((what, pair.agent.stats()["shutdown"]["channel"]["packets_sent"]))

        class Lasting(RehearsedPower):
            def act(self, order: ShutdownOrder) -> Callable[[], None]:
                look("begun")
                return lambda: look("let go")

        async with both("shutdown") as pair:
            pair.agent.services["shutdown"]._power = Lasting()
            await pair.host.shutdown.request(text="bye")
            assert done == [("begun", 1), ("let go", 2)]

    run(main())


def test_a_host_that_goes_away_while_this_machine_drains_ends_that(both) -> None:
    async def main() -> None:
        ended: list[float] = []

        def drain(order: ShutdownOrder, until: float) -> Steps[None]:
            try:
                while not order.text:
                    yield Wait(until)
            finally:
                ended.append(until)

        async with both("shutdown") as pair:
            service = pair.agent.services["shutdown"]
            service._drain = drain
            asked = asyncio.create_task(pair.host.shutdown.request(timeout=1000))
            while EventKind.ASKED not in pair.kinds("shutdown"):
                await asyncio.sleep(0.01)
            await pair.host.set_offered("shutdown", False)
            with pytest.raises(HvringError):
                await asked
            assert (len(ended), service._power.orders) == (1, [])
            await pair.host.set_offered("shutdown", True)
            await pair.host.wait_ready("shutdown")
            await pair.host.shutdown.request(text="and again")
            assert (len(ended), len(service._power.orders)) == (2, 1)
            assert EventKind.CANCELLED in pair.kinds("shutdown")

    run(main())


def test_a_service_that_is_switched_off_and_on_is_served_again_and_the_others_do_not_notice(both) -> None:
    async def main() -> None:
        async with both() as pair:
            await pair.host.kvp.set("kept", "yes")
            for name in SERVICE_NAMES:
                await pair.host.set_offered(name, False)
            for name in SERVICE_NAMES:
                await pair.host.set_offered(name, True)
            await pair.host.wait_ready()
            assert await pair.host.kvp.get("kept") == "yes"
            served = [EventKind.OPENED, EventKind.NEGOTIATED]
            assert pair.kinds("kvp") == [*served, EventKind.CHANGED, EventKind.RESCINDED, *served]
            assert all(line["openings"] == 2 for line in pair.agent.stats().values())

    run(main())


def test_a_host_that_leaves_half_way_leaves_no_partial_file_and_no_freeze(both) -> None:
    async def main() -> None:
        async with both("fcopy", "vss") as pair:
            started = asyncio.Event()
            copy = asyncio.create_task(
                pair.host.fcopy.copy(
                    bytes(1 << 22),
                    f"{pair.files}/made",
                    name="f",
                    create_path=True,
                    progress=lambda *_: started.set(),
                )
            )
            await started.wait()
            await pair.host.vss.freeze()
            assert pair.agent.services["vss"].frozen
            assert os.listdir(pair.files / "made") == []  # it has no name yet
            await pair.host.set_offered("fcopy", False)
            await pair.host.set_offered("vss", False)
            with pytest.raises(Exception, match=r"."):
                await copy
            while len(pair.kinds("fcopy") + pair.kinds("vss")) < 6:
                await asyncio.sleep(0)
            while os.listdir(pair.files):  # another process removes what came
                await asyncio.sleep(0)
            assert not pair.agent.services["vss"].frozen

    run(main())


def test_stopping_undoes_what_is_half_done_and_can_be_repeated(both) -> None:
    async def main() -> None:
        async with both("vss") as pair:
            await pair.host.vss.freeze()
            await pair.agent.stop()
            assert not pair.agent.services["vss"].frozen
            await pair.agent.stop()
            await pair.agent.start()
            await pair.host.wait_ready("vss")

    run(main())


def test_an_agent_may_start_before_its_host(tmp_path) -> None:
    async def main() -> None:
        path = tmp_path / "later.sock"
        opener = partial(connect_async, path, timeout=None, wait=True)
        async with Agent([Heartbeat()], opener) as agent, VirtualHost(path, ["heartbeat"]) as host:
            await host.wait_ready("heartbeat")
            await agent.wait_open("heartbeat")

    run(main())


class NoSuchThingError(HvringError):
    is_final = True


def test_a_service_whose_channel_can_never_open_fails_alone() -> None:
    async def main() -> None:
        events = []

        async def opener(name: str) -> None:
            raise NoSuchThingError("no such thing")

        agent = Agent([Heartbeat()], opener, on_event=events.append)
        await agent.run()
        assert [(e.kind, e.detail) for e in events] == [(EventKind.STOPPED, "no such thing")]
        assert agent.stats()["heartbeat"]["open"] is False
        assert agent.stats()["heartbeat"]["stopped"] == "no such thing"
        with pytest.raises(HvringError, match="not served any more: no such thing"):
            await agent.wait_open("heartbeat")

    run(main())


@pytest.mark.parametrize(
    "error",
    [RingCorruptError("a lie"), OSError(24, "too many open files"), EndpointError("the host lies")],
)
def test_rings_that_are_broken_when_they_are_opened_and_a_lack_of_descriptors_are_no_end(
    error, tmp_path
) -> None:
    async def main() -> None:
        events, errors = [], [error]

        async def opener(name: str) -> Channel:
            if errors:
                raise errors.pop()
            return await connect_async(tmp_path / "sock", name)

        async with (
            VirtualHost(tmp_path / "sock") as host,
            Agent([Heartbeat()], opener, on_event=events.append),
        ):
            await host.wait_ready("heartbeat")
        assert [e.kind for e in events] == [EventKind.BROKEN, EventKind.OPENED, EventKind.NEGOTIATED]

    run(main())


def test_an_error_of_an_openers_own_ends_one_service_and_is_told(caplog) -> None:
    async def main() -> None:
        events = []

        async def opener(name: str) -> Channel:
            raise LookupError("a bug")

        await Agent([Heartbeat()], opener, on_event=events.append).run()
        assert [(e.kind, e.detail) for e in events] == [(EventKind.STOPPED, "LookupError('a bug')")]

    run(main())
    assert "a bug" in caplog.text


def test_a_listener_that_raises_does_not_disturb_the_services(tmp_path, caplog) -> None:
    def broken(event: object) -> None:
        raise LookupError("a bug")

    async def main() -> None:
        opener = partial(connect_async, tmp_path / "sock", timeout=None, wait=True)
        async with VirtualHost(tmp_path / "sock") as host, Agent([Heartbeat()], opener, on_event=broken):
            await host.wait_ready("heartbeat")
            await host.heartbeat.beat()

    run(main())
    assert "a bug" in caplog.text


def test_a_deadline_is_kept_while_a_broken_channel_is_left_alone(both, monkeypatch) -> None:
    """A thaw that failed is tried again before the next opening, however long that pause is."""
    monkeypatch.setattr("hvring.agent.service_loop.FIRST_PAUSE", 1000.0)
    monkeypatch.setattr("hvring.agent.service_loop.LAST_PAUSE", 3000.0)

    async def main() -> None:
        async with both("vss") as pair:
            freezer, failures = pair.agent.services["vss"]._freezer, [OSError("not now")]
            thaw = freezer.thaw

            def stubborn() -> None:
                if failures:
                    raise failures.pop()
                thaw()

            freezer.thaw = stubborn
            await pair.host.vss.freeze()
            async with pair.host.faults("vss") as raw:
                struct.pack_into("<I", raw.memory, raw.ring_size, 0xFFFFFFFF)  # write_index
                raw.signal()
                while freezer.frozen:
                    await asyncio.sleep(0.01)
            assert EventKind.BROKEN in pair.kinds("vss")

    run(main())


def test_a_host_that_breaks_the_ring_is_left_and_tried_again(both) -> None:
    async def main() -> None:
        async with both("heartbeat") as pair:
            async with pair.host.faults("heartbeat") as raw:
                struct.pack_into("<I", raw.memory, raw.ring_size, 0xFFFFFFFF)  # write_index
                raw.signal()
                while EventKind.BROKEN not in pair.kinds("heartbeat"):
                    await asyncio.sleep(0.01)
            await pair.host.wait_ready("heartbeat")
            await pair.host.heartbeat.beat()

    run(main())


def test_a_duplicate_shutdown_is_answered_and_acted_on_as_often_as_it_comes(both) -> None:
    async def main() -> None:
        async with both("shutdown") as pair:
            await pair.host.shutdown.request()
            await pair.host.shutdown.request()
            power = pair.agent.services["shutdown"]._power
            assert isinstance(power, RehearsedPower)
            assert len(power.orders) == 2

    run(main())


def test_nothing_is_left_open(both) -> None:
    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        async with both() as pair:
            await pair.host.kvp.set("a", "b")
            for name in SERVICE_NAMES:
                await pair.host.set_offered(name, False)
                await pair.host.set_offered(name, True)
            await pair.host.wait_ready()

    before = count()
    run(main())
    assert count() == before


def test_the_blocking_form_serves_one_service_in_a_thread(tmp_path) -> None:
    path, store = tmp_path / "host.sock", PoolStore(tmp_path / "pools")
    ended: list[BaseException] = []

    def guest() -> None:
        with connect(path, "kvp", wait=True) as channel:
            try:
                serve(Kvp(store), channel)
            except ChannelRescindedError as error:
                ended.append(error)

    async def main() -> None:
        async with VirtualHost(path, ["kvp"]) as host:
            thread = threading.Thread(target=guest)
            thread.start()
            await host.wait_ready("kvp")
            await host.kvp.set("from", "thread")
            assert await host.kvp.get("from") == "thread"
            await host.set_offered("kvp", False)
            await asyncio.to_thread(thread.join)

    run(main())
    assert len(ended) == 1


def test_the_blocking_form_keeps_a_services_deadline(tmp_path) -> None:
    """A freeze that the host forgets ends by itself, though no packet comes."""
    from hvring.guest.freezer import RehearsedFreezer
    from hvring.services import Vss

    path = tmp_path / "host.sock"
    vss = Vss(RehearsedFreezer(), max_frozen=0.05)

    def guest() -> None:
        with connect(path, "vss", wait=True) as channel, pytest.raises(ChannelRescindedError):
            serve(vss, channel)

    async def main() -> None:
        async with VirtualHost(path, ["vss"]) as host:
            thread = threading.Thread(target=guest)
            thread.start()
            await host.wait_ready("vss")
            await host.vss.freeze()
            while vss.frozen:
                await asyncio.sleep(0.005)
            with pytest.raises(GuestStatusError):
                await host.vss.thaw()
            await host.set_offered("vss", False)
            await asyncio.to_thread(thread.join)

    run(main())


def test_a_thaw_that_fails_is_tried_again_while_the_service_is_off(both) -> None:
    async def main() -> None:
        async with both("vss") as pair:
            service = pair.agent.services["vss"]
            freezer, failures = service._freezer, [OSError("not now")]
            thaw = freezer.thaw

            def stubborn() -> None:
                if failures:
                    raise failures.pop()
                thaw()

            freezer.thaw = stubborn
            await pair.host.vss.freeze()
            await pair.host.set_offered("vss", False)
            while freezer.frozen:
                await asyncio.sleep(0.01)
            assert not failures

    run(main())


def test_effects_are_rehearsed_unless_meant() -> None:
    from hvring.guest.power import SystemPower

    real = {s.name: s for s in standard_services(Settings(real=True), ["shutdown"])}
    assert isinstance(real["shutdown"], Shutdown)
    assert isinstance(real["shutdown"]._power, SystemPower)
    (rehearsed,) = standard_services(Settings(), ["shutdown"])
    assert isinstance(rehearsed._power, RehearsedPower)
    with pytest.raises(ValueError, match="there are shutdown, timesync"):
        standard_services(Settings(), ["nonsense"])


def test_every_service_keeps_to_the_protocol_of_services() -> None:
    services: list[Service] = standard_services()
    for service in services:
        assert service.deadline() is None
        service.tick()
        service.reset()


def test_two_services_of_one_name_and_a_name_that_nobody_has_are_refused() -> None:
    async def opener(name: str) -> Channel:
        raise NoSuchThingError(name)

    async def main() -> None:
        with pytest.raises(ValueError, match="two services are called 'heartbeat'"):
            Agent([Heartbeat(), Heartbeat()], opener)
        with pytest.raises(ValueError, match="'kvp' is not served here"):
            await Agent([Heartbeat()], opener).wait_open("kvp")

    run(main())


def test_a_host_that_refuses_in_the_same_way_again_and_again_is_told_once(monkeypatch) -> None:
    monkeypatch.setattr("hvring.agent.service_loop.LAST_PAUSE", 0.0)
    attempts: list[str] = []
    enough = asyncio.Event()

    async def opener(name: str) -> Channel:
        attempts.append(name)
        if len(attempts) >= 100:
            enough.set()
            await asyncio.Event().wait()
        raise EndpointError("a lie" if len(attempts) < 50 else "another lie")

    async def main() -> None:
        events = []
        async with Agent([Heartbeat()], opener, on_event=events.append):
            await enough.wait()
        assert [(e.kind, e.detail) for e in events] == [
            (EventKind.BROKEN, "a lie"),
            (EventKind.BROKEN, "another lie"),
        ]

    run(main())


def test_a_host_cannot_make_the_agent_talk_without_end(both) -> None:
    """One event of a change each, however often a host makes it change, and a count of the others."""

    async def main() -> None:
        async with both("kvp", "heartbeat") as pair:
            for n in range(300):
                await pair.host.kvp.set(f"key {n}", "v")
                await pair.host.renegotiate("heartbeat")
            assert pair.kinds("kvp").count(EventKind.CHANGED) == BURST
            assert pair.kinds("heartbeat").count(EventKind.NEGOTIATED) == BURST
            assert pair.agent.stats()["kvp"]["counters"]["events_suppressed"] == 300 - BURST

    run(main())


def test_events_of_a_freeze_come_after_its_thaw(both) -> None:
    """A log may lie on a file system that is frozen."""

    async def main() -> None:
        async with both("vss", "kvp") as pair:
            await pair.host.vss.freeze()
            change = asyncio.ensure_future(pair.host.kvp.set("key", "value"))  # which waits for the thaw
            await pair.host.vss.check()
            assert EventKind.FROZEN not in pair.kinds("vss")
            assert EventKind.CHANGED not in pair.kinds("kvp")
            await pair.host.vss.thaw()
            await change
            assert EventKind.FROZEN in pair.kinds("vss")
            while EventKind.CHANGED not in pair.kinds("kvp"):
                await asyncio.sleep(0)

    run(main())


def test_an_effect_of_an_embedders_own_takes_the_place_of_the_usual_one() -> None:
    power = RehearsedPower()
    (service,) = standard_services(Settings(real=True), ["shutdown"], effects=Effects(power=power))
    assert service._power is power


def test_what_fails_is_told_once_per_kind_and_stands_in_the_numbers(both) -> None:
    def health() -> ApplicationState:
        raise OSError(errors[0])

    errors = ["the file is missing"]

    async def main() -> None:
        async with both("heartbeat", heartbeat=HeartbeatSettings(health)) as pair:
            for _ in range(10):
                await pair.host.heartbeat.beat()
            told = [e for e in pair.events if e.kind is EventKind.FAILED]
            assert [e.detail for e in told] == ["health: the file is missing"]
            assert pair.agent.stats()["heartbeat"]["last_error"] == "the file is missing"

    run(main())


@pytest.mark.parametrize("good_ticks", [0, 1, 2])
def test_a_service_of_an_embedders_own_that_raises_stops_alone(good_ticks, tmp_path, caplog) -> None:
    """Whenever it does: before the first opening, while that is waited for, in a pause."""

    class Odd(Shutdown):
        ticks = 0

        def tick(self) -> None:
            self.ticks += 1
            if self.ticks > good_ticks:
                raise LookupError("a bug")

        def deadline(self) -> float | None:
            return 0.0

    async def main() -> None:
        events = []
        opener = partial(connect_async, tmp_path / "sock", timeout=None, wait=True)
        services = [Odd(RehearsedPower()), Heartbeat()]
        async with Agent(services, opener, on_event=events.append), asyncio.timeout(60):
            while EventKind.STOPPED not in {event.kind for event in events}:
                await asyncio.sleep(0.001)
            async with VirtualHost(tmp_path / "sock", ["heartbeat"]) as host:
                await host.wait_ready("heartbeat")
                await host.heartbeat.beat()
        assert [e.detail for e in events if e.kind is EventKind.STOPPED] == ["LookupError('a bug')"]
        assert {e.service for e in events if e.kind is EventKind.STOPPED} == {"shutdown"}

    run(main())
    assert "a bug" in caplog.text
