# SPDX-License-Identifier: Apache-2.0
"""Why a backup failed, read by the host over the data exchange."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring.agent import Agent, KvpSettings, Settings
from hvring.agent.standard import Effects, standard_services
from hvring.daemon.reasons_pool import LARGEST, ReasonsPool, value
from hvring.errors import EffectError
from hvring.guest.pool import Pool
from hvring.host import HostError, VirtualHost
from hvring.reasons import Reason
from hvring.services.service import Failure
from hvring.transport.virtual import connect_async

KEY = "hvring.vss.last_error"


class FailingFreezer:
    ready = True
    frozen = False

    def __init__(self) -> None:
        self.error: EffectError | None = EffectError(
            "cannot open /srv: opening it hangs", reason=Reason.MOUNT_UNREACHABLE
        )

    def freeze(self) -> None:
        if self.error is not None:
            raise self.error
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False


async def until(look, wanted) -> None:
    async with asyncio.timeout(60):
        while await look() != wanted:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("publish", [True, None])
def test_a_host_reads_why_its_backup_failed_until_one_works(tmp_path: Path, publish: bool | None) -> None:
    pools = tmp_path / "pools"
    settings = Settings(kvp=KvpSettings(pools, publish_errors=publish))
    freezer = FailingFreezer()
    services = standard_services(settings, ["kvp", "vss"], effects=Effects(freezer=freezer))
    said: list[tuple[str, str, str]] = []

    async def main() -> None:
        path = tmp_path / "host.sock"
        agent: Agent
        reasons: ReasonsPool
        quiet_writes: list[str] = []

        def heard(event) -> None:
            before = stamp()
            reasons.heard(event)
            if agent.quiet and stamp() != before:
                quiet_writes.append(str(event))

        def stamp() -> int:
            try:
                return (pools / ".kvp_pool_1").stat().st_mtime_ns
            except OSError:
                return 0

        agent = Agent(
            services,
            partial(connect_async, path, timeout=None, wait=True),
            on_event=heard,
            on_calm=lambda: reasons.look(),
            keeps_events=False,
        )
        reasons = ReasonsPool(agent, lambda: settings, lambda *words: said.append(words), pause=0.05)
        async with VirtualHost(path, ["kvp", "vss"]) as host, agent, reasons:
            await host.wait_ready("kvp", "vss")
            with pytest.raises(HostError):
                await host.vss.freeze()
            if publish is None:  # a rehearsal says nothing of itself
                assert not Pool(pools / ".kvp_pool_1").items()
                return
            found = dict(await host.kvp.list(1))
            assert "mount_unreachable: freeze: cannot open /srv: opening it hangs [" in found[KEY]
            assert Reason.MOUNT_UNREACHABLE.remedy in found[KEY]
            freezer.error = EffectError("no", reason=Reason.FREEZE_TIMEOUT)
            with pytest.raises(HostError):
                await host.vss.freeze()

            async def reason() -> str | None:
                text = dict(await host.kvp.list(1)).get(KEY)
                return None if text is None else text.split()[1]

            await until(reason, "freeze_timeout:")
            freezer.error = None
            await host.vss.freeze()
            await host.vss.thaw()
            await until(reason, None)
        assert quiet_writes == []

    asyncio.run(main())
    assert said == []


@given(st.text(), st.sampled_from(Reason))
def test_what_the_host_reads_fits_and_is_one_line(words: str, reason: Reason) -> None:
    text = value(Failure("freeze", EffectError(words * 100), reason, time.time()))
    assert len(text.encode()) <= LARGEST
    assert text.isprintable()
    assert reason.value in text
    assert reason.remedy in text


def test_the_catalogue_for_people_is_that_of_the_program() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reasons.md").read_text()
    rows = [f"| `{r.value}` | {r.explanation} | {r.remedy} |" for r in Reason]
    assert page.splitlines()[7:] == rows


def test_names_of_reasons_are_plain_and_each_says_what_to_do() -> None:
    for reason in Reason:
        assert reason.value == reason.name.lower()
        assert reason.explanation
        assert reason.remedy
