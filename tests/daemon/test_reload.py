# SPDX-License-Identifier: Apache-2.0
"""A configuration that changes while an agent serves: no channel is opened anew, what is under way ends as it began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hvring.agent import Agent, Effects, standard_services
from hvring.agent.settings import ShutdownSettings
from hvring.cli.serving import read_configuration
from hvring.daemon.config import reading
from hvring.daemon.reload import Reloader
from hvring.daemon.settings import Configuration
from hvring.errors import EffectError
from hvring.events import Event, EventKind
from hvring.guest.freezer import RehearsedFreezer
from hvring.guest.pools import PoolStore
from hvring.guest.power import RehearsedPower
from hvring.host import VirtualHost
from hvring.host.errors import HostError
from hvring.services import Service, Vss
from hvring.services.vss import BackupState
from hvring.transport.virtual import connect_async
from hvring.vmbus import SERVICE_NAMES


class Serving:
    """An agent, its host, and the file that it reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "hvring.toml"
        self.events: list[Event] = []
        for name in ("in", "other", "pools", "more"):
            (folder / name).mkdir()
        self.write(kvp=f'pool_directory = "{folder}/pools"', fcopy=f'allow = ["{folder}/in"]')

    def write(self, **sections: str) -> None:
        self.file.write_text("".join(f"[{name}]\n{text}\n" for name, text in sections.items()))

    def read(self) -> Configuration:
        return reading.load(self.file)

    def remake(self, configuration: Configuration, names: Iterable[str]) -> list[Service]:
        return standard_services(configuration.services, names)

    @asynccontextmanager
    async def __call__(self, *names: str) -> AsyncIterator[VirtualHost]:
        configuration = self.read()
        path = self.folder / "host.sock"
        opener = partial(connect_async, path, timeout=None, wait=True)
        self.agent = Agent(
            self.remake(configuration, names or SERVICE_NAMES),
            opener,
            on_event=self.events.append,
            on_calm=lambda: self.reloader.calm(),
        )
        self.reloader = Reloader(self.agent, configuration, self.read, self.remake, self.events.append)
        async with VirtualHost(path) as host, self.agent:
            async with asyncio.timeout(60):
                await host.wait_ready(*names)
                before = self.openings()
                yield host
            assert self.openings() == before
            assert all(line["open"] for line in self.agent.stats().values())
            assert host.violations == []

    def openings(self) -> dict[str, Any]:
        return {name: line["openings"] for name, line in self.agent.stats().items()}

    def told(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if event.kind is kind and event.service == "agent"]


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    return Serving(tmp_path)


def test_new_pools_and_new_folders_hold_for_the_next_request(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as host:
            folder = serving.folder
            await host.kvp.set("old", "1")
            serving.write(kvp=f'pool_directory = "{folder}/new"', fcopy=f'allow = ["{folder}/other"]')
            said = serving.reloader.reload()
            assert said == [
                f'kvp.pool_directory: "{folder}/pools" -> "{folder}/new"',
                f'fcopy.allow: ["{folder}/in"] -> ["{folder}/other"]',
            ]
            assert (folder / "new" / ".kvp_pool_0").exists()
            await host.kvp.set("new", "2")
            assert PoolStore(folder / "pools").get(0, "new") is None
            assert PoolStore(folder / "new").get(0, "new") == "2"
            with pytest.raises(HostError):
                await host.fcopy.copy(b"x", f"{folder}/in", name="refused")
            await host.fcopy.copy(b"x", f"{folder}/other", name="taken")
            assert (folder / "other" / "taken").read_bytes() == b"x"
            (event,) = serving.told(EventKind.RELOADED)
            assert event.facts == {"applied": "kvp.pool_directory fcopy.allow", "not_applied": ""}
            assert serving.reloader.reload() == []
            assert "nothing changed" in serving.told(EventKind.RELOADED)[1].detail

    asyncio.run(main())


def test_a_copy_that_is_under_way_ends_where_it_began(serving: Serving) -> None:
    async def main() -> None:
        async with serving("fcopy") as host:
            folder = serving.folder
            data = bytes(range(256)) * 20_000
            copying = asyncio.create_task(host.fcopy.copy(data, f"{folder}/in", name="large"))
            while serving.agent.stats()["fcopy"]["counters"]["requests"] < 10:
                await asyncio.sleep(0)
            serving.write(fcopy=f'allow = ["{folder}/other"]\nmode = 0o600')
            assert len(serving.reloader.reload()) == 3  # the pools are as by default now
            assert not copying.done()
            await copying
            assert (folder / "in" / "large").read_bytes() == data
            await host.fcopy.copy(b"x", f"{folder}/other", name="next")
            assert (folder / "other" / "next").stat().st_mode & 0o777 == 0o600

    asyncio.run(main())


def test_during_a_freeze_nothing_is_read_and_after_the_thaw_all_is(serving: Serving) -> None:
    async def main() -> None:
        async with serving("vss", "kvp") as host:
            vss = serving.agent.services["vss"]
            assert isinstance(vss, Vss)
            before = vss._freezer

            async def change() -> None:
                assert vss.state is BackupState.FROZEN
                serving.write(vss="max_frozen = 7\ncapability_flags = 9", kvp="max_records = 3")
                reads = serving.file.stat().st_atime_ns
                (said,) = serving.reloader.reload()
                assert "until the thaw" in said
                serving.reloader.reload()  # and no more of them afterwards
                assert serving.file.stat().st_atime_ns == reads
                assert vss._freezer is before

            await host.vss.backup(change)
            assert vss.state is BackupState.IDLE
            assert vss._freezer is not before
            assert not before.frozen
            assert await host.vss.check() == 9
            assert vss._max_frozen == 7
            assert len(serving.told(EventKind.RELOADED)) == 1
            await host.vss.backup()

    asyncio.run(main())


def test_what_needs_a_restart_is_named_and_keeps_its_value(serving: Serving) -> None:
    async def main() -> None:
        async with serving("kvp"):
            serving.write(run="bind = true\nvia = 'uio'", control="group = 'adm'", kvp="timeout = 9")
            said = serving.reloader.reload()
            left = [line for line in said if line.startswith("not applied: ")]
            assert [line.split(": ")[1] for line in left] == ["run.bind", "run.via", "control.group"]
            assert all("restart" in line for line in left)
            held = serving.reloader.configuration
            assert (held.run.bind, held.control.group, held.services.kvp.timeout) == (False, None, 9.0)
            (event,) = serving.told(EventKind.RELOADED)
            assert event.facts["not_applied"] == "run.bind run.via control.group"
            assert serving.reloader.reload() == left  # it is still so

    asyncio.run(main())


def test_a_bad_file_changes_nothing_and_is_told_in_one_event(serving: Serving) -> None:
    async def main() -> None:
        async with serving("kvp") as host:
            serving.write(kvp="timeout = 0\nmax_recods = 1", fcopy="sync = false")
            before = serving.reloader.configuration
            said = serving.reloader.reload()
            assert said == [
                f"not applied: {serving.file}:2: kvp.timeout: 0.0 is not above 0",
                f"not applied: {serving.file}:3: kvp.max_recods: there is no such setting; did you mean max_records?",
            ]
            assert serving.reloader.configuration is before
            serving.file.unlink()
            serving.file.mkdir()
            (line,) = serving.reloader.reload()
            assert "not a regular file" in line
            assert [event.facts["what"] for event in serving.told(EventKind.FAILED)] == ["reload", "reload"]
            await host.kvp.set("key", "value")
            assert PoolStore(serving.folder / "pools").get(0, "key") == "value"

    asyncio.run(main())


def test_a_section_with_a_taker_is_given_to_it_and_may_be_refused(serving: Serving) -> None:
    async def main() -> None:
        async with serving("heartbeat"):
            taken: list[Any] = []
            serving.reloader.applies("log", taken.append)
            serving.write(log="level = 'debug'", kvp="timeout = 5")
            assert serving.reloader.reload()[0] == 'log.level: "info" -> "debug"'
            assert [settings.level for settings in taken] == ["debug"]

            def refuse(_: Any) -> None:
                raise EffectError("there is no room")

            serving.reloader.applies("log", refuse)
            serving.write(log="level = 'error'", kvp="timeout = 5")
            assert serving.reloader.reload() == [
                'not applied: log.level: "debug" -> "error": there is no room'
            ]
            assert serving.reloader.configuration.log.level == "debug"

    asyncio.run(main())


def test_many_reloads_beside_requests_lose_none(serving: Serving) -> None:
    async def main() -> None:
        async with serving("kvp") as host:
            folder = serving.folder

            async def reload() -> None:
                for n in range(20):
                    serving.write(kvp=f'pool_directory = "{folder}/pools"\nmax_records = {1000 + n}')
                    assert len(serving.reloader.reload()) == (2 if n == 0 else 1)  # fcopy.allow goes, too
                    await asyncio.sleep(0)

            async def ask(key: str) -> None:
                await host.kvp.set(key, "value")

            await asyncio.gather(reload(), *(ask(f"key{n}") for n in range(20)))
            store = PoolStore(folder / "pools")
            assert all(store.get(0, f"key{n}") == "value" for n in range(20))

    asyncio.run(main())


def test_every_service_can_take_other_settings() -> None:
    for old, fresh in zip(standard_services(), standard_services(), strict=True):
        old.adopt(fresh)  # type: ignore[attr-defined]


def test_a_freezer_that_knows_of_a_freeze_which_hangs_stays() -> None:
    class Hanging(RehearsedFreezer):
        ready = False  # type: ignore[assignment]

    (vss,) = standard_services(names=["vss"], effects=Effects(freezer=Hanging(list)))
    (fresh,) = standard_services(names=["vss"])
    assert isinstance(vss, Vss)
    assert isinstance(fresh, Vss)
    vss.adopt(fresh)
    assert isinstance(vss._freezer, Hanging)
    vss._freezer.__class__.ready = True  # type: ignore[assignment]
    vss._hot_backup()
    assert vss._freezer is fresh._freezer


def test_a_rehearsal_stays_one_whatever_the_file_says_now(tmp_path: Path) -> None:
    file = tmp_path / "hvring.toml"
    file.write_text('[run]\nvirtual = "/host"\n')
    configuration = read_configuration(str(file), {})

    async def nothing(_: str) -> Any:
        raise AssertionError

    agent = Agent(standard_services(configuration.services, ["shutdown"]), nothing)
    reloader = Reloader(
        agent,
        configuration,
        partial(read_configuration, str(file), {}, configuration.run),
        lambda found, names: standard_services(found.services, names),
        lambda event: None,
    )
    file.write_text('[run]\nvirtual = "/host"\nrehearse = false\n[shutdown]\ntimeout = 11\n')
    applied, refused = reloader.reload()
    assert applied.startswith("shutdown.timeout")
    assert refused.startswith("not applied: run.rehearse")
    assert isinstance(agent.services["shutdown"]._power, RehearsedPower)  # type: ignore[attr-defined]
    # Nor by a reader that does not know what it began with.
    real = replace(configuration.services, real=True, shutdown=ShutdownSettings(timeout=12))
    reloader._read = lambda: replace(configuration, services=real)
    reloader.reload()
    assert isinstance(agent.services["shutdown"]._power, RehearsedPower)  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [TypeError("odd"), RuntimeError(), ValueError("not so")])
def test_whatever_a_new_service_raises_what_holds_is_known(serving: Serving, error: Exception) -> None:
    async def main() -> None:
        async with serving("kvp", "heartbeat"):
            before = serving.reloader.configuration

            def fails(*_: object) -> list[Service]:
                raise error

            serving.reloader._remake = fails
            serving.write(kvp=f'pool_directory = "{serving.folder}/more"', health='state = "healthy"')
            serving.reloader.applies("health", lambda _: None)
            said = serving.reloader.reload()
            assert any(line.startswith("not applied: kvp.pool_directory") for line in said)
            assert serving.reloader.configuration.services.kvp == before.services.kvp
            assert serving.reloader.configuration.health.state == "healthy"

            def unreadable() -> Configuration:
                raise error

            serving.reloader._read = unreadable
            (refused,) = serving.reloader.reload()
            assert refused.startswith("not applied: ")
            assert str(error) in refused

    asyncio.run(main())
