# SPDX-License-Identifier: Apache-2.0
"""What would write to this machine's file systems waits while these are frozen, and no longer than a host waits."""

from __future__ import annotations

import asyncio

import pytest

from hvring.agent import Agent
from hvring.guest.files import DirectoryReceiver
from hvring.guest.pools import PoolStore
from hvring.ic import KvpDelete, KvpGet, KvpSet, StartCopy, Status, VssOperation, VssRequest
from hvring.pending import Pending
from hvring.reasons import Reason
from hvring.services import Fcopy, Heartbeat, Kvp, Vss, held
from hvring.services.base import Response


@pytest.fixture
def frozen():
    """Whether something is, to be changed by the test."""
    return {"now": True}


@pytest.fixture
def kvp(tmp_path, frozen):
    service = Kvp(PoolStore(tmp_path / "pools"))
    service.is_frozen = lambda: frozen["now"]
    return service


def write_in(directory):
    return sorted(path.name for path in directory.rglob("*")) if directory.exists() else []


@pytest.mark.parametrize("message", [KvpSet(0, "key", "value"), KvpDelete(0, "key")])
def test_a_change_waits_for_the_thaw_and_touches_nothing_before(kvp, message, frozen, tmp_path):
    answer = kvp.respond(message)
    for _ in range(3):
        assert isinstance(answer, Pending)
        answer = answer.resume()
    assert write_in(tmp_path / "pools") == []
    frozen["now"] = False
    answer = answer.resume()
    assert isinstance(answer, Response)
    assert answer.status == (Status.OK if isinstance(message, KvpSet) else Status.NO_MORE_ITEMS)


def test_reading_does_not_wait(kvp):
    assert kvp.respond(KvpGet(0, "key")).status == Status.NO_MORE_ITEMS


def test_a_thaw_that_does_not_come_is_waited_for_as_long_as_a_host_waits(kvp, monkeypatch, tmp_path):
    monkeypatch.setattr(held, "LONGEST", 0.0)
    assert kvp.respond(KvpSet(0, "key", "value")).status == Status.FAIL
    assert kvp.last_failure.reason is Reason.FROZEN
    assert write_in(tmp_path / "pools") == []


def test_the_pools_are_not_made_on_what_is_frozen(kvp, frozen, tmp_path, monotonic):
    kvp._monotonic = monotonic
    kvp.tick()
    assert write_in(tmp_path / "pools") == []
    assert kvp.deadline() > 0
    frozen["now"] = False
    monotonic.now += kvp.deadline()
    kvp.tick()
    assert ".kvp_pool_0" in write_in(tmp_path / "pools")


def test_a_copy_begins_after_the_thaw(tmp_path, frozen):
    service = Fcopy(DirectoryReceiver([tmp_path]))
    service.is_frozen = lambda: frozen["now"]
    answer = service.respond(StartCopy("file", str(tmp_path), 0, 3))
    assert isinstance(answer, Pending)
    assert write_in(tmp_path) == []
    answer.cancel()
    service.reset()
    frozen["now"] = False
    assert write_in(tmp_path) == []


def test_the_services_of_one_agent_know_of_each_other(freezer, tmp_path):
    async def never(*_):
        await asyncio.Event().wait()

    async def main():
        vss, kvp, heartbeat = Vss(freezer), Kvp(PoolStore(tmp_path)), Heartbeat()
        async with Agent([vss, kvp, heartbeat], never):
            assert not kvp.is_frozen()
            assert vss.respond(VssRequest(VssOperation.FREEZE)).status == Status.OK
            assert kvp.is_frozen()
            assert heartbeat.is_frozen()
            assert isinstance(kvp.respond(KvpSet(0, "key", "value")), Pending)
            assert vss.respond(VssRequest(VssOperation.THAW)).status == Status.OK
            assert not kvp.is_frozen()
        assert kvp.is_frozen is None
        async with Agent([kvp, heartbeat], never):
            assert kvp.is_frozen is None  # nobody here freezes anything

    asyncio.run(main())
