# SPDX-License-Identifier: Apache-2.0
"""The numbers in Prometheus' format, with two readers of it as oracles; and the page over HTTP."""

from __future__ import annotations

import asyncio
import copy
import re
import shutil
import subprocess
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hvring.agent.agent import Agent
from hvring.daemon.health import HealthRegister
from hvring.daemon.listener import CLIENTS, LARGEST_REQUEST, MetricsListener, address
from hvring.daemon.metrics import exposition
from hvring.daemon.status import Status
from hvring.errors import EffectError, EndpointError
from hvring.guest.clock import RehearsedClock
from hvring.guest.freezer import RehearsedFreezer
from hvring.ic.heartbeat import ApplicationState
from hvring.ic.timesync import SampleFlag
from hvring.reasons import Reason
from hvring.services import Fcopy, Heartbeat, TimeSync, Vss
from hvring.services.timesync import Measurement

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"
HOSTILE = 'a"b\\c\nd{}=,#\x00\x1b\u2028é\ud800'


async def nothing(name: str) -> Any:
    raise AssertionError(name)


def snapshot() -> dict[str, Any]:
    """Of an agent to which much has happened, some of it with texts of strangers."""
    register = HealthRegister()
    register.set(ApplicationState.CRITICAL, HOSTILE)
    vss, fcopy, timesync = Vss(RehearsedFreezer()), Fcopy(None), TimeSync(RehearsedClock())  # type: ignore[arg-type]
    vss.note("freeze", EffectError(HOSTILE, reason=Reason.DISK_FULL))
    vss.note("freeze", EffectError("again", reason=Reason.DISK_FULL))
    vss.note("thaw", EffectError("other"))
    fcopy.copies, fcopy.copied_bytes = 3, 2**53 + 1
    timesync.measurement = Measurement(-1_500_000, SampleFlag(0), 0, 0, 0.0, 2000, True)
    agent = Agent([vss, fcopy, timesync, Heartbeat(register)], nothing)
    found = Status(agent, rehearsal=False, health=register).snapshot()
    found["services"]["vss"]["channel"] = {"packets_sent": 7, "spun_ns": 1_500_000_000}
    found["services"]["vss"]["way"] = HOSTILE
    found["services"]["vss"]["hooks"] = {HOSTILE: {"backups": 3, "failures": 1, "seconds": 0.25}}
    return found


def samples(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(page):
        assert family.type in ("gauge", "counter"), family.name
        assert family.documentation, family.name
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def value(page: Mapping[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return page[name, frozenset(labels.items())]


def test_the_page_says_what_the_status_says() -> None:
    known = snapshot()
    page = samples(exposition(known))
    for name, one in known["services"].items():
        for counter, number in one["counters"].items():
            assert value(page, f"hvring_service_{counter}_total", service=name) == number
        for reason, number in one["failures"].items():
            assert value(page, "hvring_service_failures_total", service=name, reason=reason) == number
        assert value(page, "hvring_service_state", service=name, state="waiting") == 1
        assert value(page, "hvring_channel_openings_total", service=name) == one["openings"]
    freezes = {"service": "vss", "reason": "disk_full"}
    assert value(page, "hvring_vss_freeze_failures_total", **freezes) == 2
    assert value(page, "hvring_vss_frozen_seconds_total") == 0
    assert value(page, "hvring_fcopy_files_total") == 3
    assert value(page, "hvring_fcopy_bytes_total") == 2**53 + 1
    assert value(page, "hvring_clock_offset_seconds") == -0.0015
    assert value(page, "hvring_health", state="critical") == 1
    assert value(page, "hvring_health", state="healthy") == 0
    assert value(page, "hvring_ok", agent="vss-fcopy-timesync-heartbeat") == 0
    assert value(page, "hvring_failing", service="vss") == 1
    hostile = HOSTILE.encode("utf-8", "backslashreplace").decode()
    assert value(page, "hvring_ring_packets_sent_total", service="vss", way=hostile) == 7
    assert value(page, "hvring_ring_spun_seconds_total", service="vss", way=hostile) == 1.5
    assert value(page, "hvring_vss_hook_backups_total", hook=hostile) == 3
    assert value(page, "hvring_vss_hook_failures_total", hook=hostile) == 1
    assert value(page, "hvring_vss_hook_freeze_seconds", hook=hostile) == 0.25


def test_numbers_are_exact() -> None:
    assert "hvring_fcopy_bytes_total 9007199254740993\n" in exposition(snapshot())


def test_several_agents_make_one_page() -> None:
    first, second = snapshot(), snapshot()
    second["process"]["name"] = "kvp"
    second["services"]["kvp"] = second["services"].pop("fcopy")
    del second["services"]["kvp"]["copies"]
    page = samples(exposition(first, second))
    assert value(page, "hvring_ok", agent="kvp") == 0
    assert value(page, "hvring_fcopy_files_total") == 3
    assert value(page, "hvring_service_requests_total", service="kvp") == 0
    assert samples(exposition()) == {}


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_of_a_stranger_breaks_the_page(text: str) -> None:
    known = copy.deepcopy(SNAPSHOT)
    known["services"]["vss"]["kernel"] = text
    page = exposition(known)
    page.encode()
    told = {dict(key[1])["kernel"] for key in samples(page) if key[0] == "hvring_service_info"}
    assert told == {"", text.encode("utf-8", "backslashreplace").decode()}


def test_the_page_for_people_has_every_name_and_no_other() -> None:
    rows = [line.split(" | ") for line in METRICS.read_text().splitlines() if line.startswith("| `")]
    told = {row[0].strip("| `"): (row[1], row[2]) for row in rows}
    known = snapshot()
    known["services"]["vss"]["last_request_age"] = 1.0
    found = {}
    for family in text_string_to_metric_families(exposition(known)):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(dict.fromkeys(key for sample in family.samples for key in sample.labels)) or "-"
        if name not in told:
            name = re.sub("^hvring_(service|ring)_.*_total$", r"hvring_\1_*_total", name)
        found[name] = family.type, labels
    assert found == told


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool (Debian: prometheus)")
def test_promtool_finds_nothing_to_say() -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=exposition(snapshot()).encode(),
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# ------------------------------------------------------------------------- over HTTP


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


async def fetch(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Head and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return head, body
    finally:
        writer.close()


GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def test_the_page_over_http_and_nothing_else() -> None:
    async def main() -> None:
        listener = MetricsListener("127.0.0.1:0", snapshot)
        await listener.start()
        try:
            head, body = await fetch(listener.port, GET)
            assert head.startswith(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
            )
            assert f"Content-Length: {len(body)}".encode() in head
            assert samples(body.decode())
            assert (await fetch(listener.port, GET.replace(b"/metrics", b"/metrics?x=1")))[0].startswith(
                b"HTTP/1.1 200"
            )
            head, body = await fetch(listener.port, GET.replace(b"GET", b"HEAD"))
            assert (head.startswith(b"HTTP/1.1 200"), body) == (True, b"")
            for request, status in (
                (GET.replace(b"/metrics", b"/metrics/../etc/passwd"), b"404"),
                (GET.replace(b"/metrics", b"/"), b"404"),
                (GET.replace(b"GET", b"POST"), b"405"),
                (b"\x16\x03\x01\x02\x00 \r\n\r\n", b"400"),
                (b"GET /metrics\r\n\r\n", b"400"),
                (b"GET / HTTP/1.1\r\nX: " + b"y" * LARGEST_REQUEST, b"431"),
            ):
                assert (await fetch(listener.port, request))[0].split()[1] == status
        finally:
            listener.close()

    run(main())


@given(st.binary(max_size=2000))
def test_whatever_a_stranger_says_the_next_one_has_the_page(data: bytes) -> None:
    async def main() -> None:
        listener = MetricsListener("127.0.0.1:0", lambda: SNAPSHOT)
        await listener.start()
        try:
            head, _ = await fetch(listener.port, data + b"\r\n\r\n")
            assert head.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200"))
            assert (await fetch(listener.port, GET))[0].startswith(b"HTTP/1.1 200")
        finally:
            listener.close()

    run(main())


def test_strangers_who_say_nothing_do_not_stay() -> None:
    async def main() -> None:
        listener = MetricsListener("127.0.0.1:0", snapshot, patience=0.2)
        await listener.start()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            with pytest.raises(ConnectionError):
                if not await reader.read():
                    raise ConnectionResetError
            writer.close()
        finally:
            listener.close()

    run(main())


def test_strangers_who_say_nothing_are_few() -> None:
    async def main() -> None:
        listener = MetricsListener("127.0.0.1:0", snapshot, patience=600)
        await listener.start()
        try:
            silent = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(CLIENTS)]
            while len(listener._clients) < CLIENTS:
                await asyncio.sleep(0)
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            with pytest.raises(ConnectionError):
                writer.write(GET)
                if not await reader.read():
                    raise ConnectionResetError
            writer.close()
            for _, writer in silent:
                writer.close()
            while listener._clients:
                await asyncio.sleep(0)
            assert (await fetch(listener.port, GET))[0].startswith(b"HTTP/1.1 200")
        finally:
            listener.close()

    run(main())


@pytest.mark.parametrize(
    "where", ["9925", "localhost:9925", ":9925", "127.0.0.1:", "127.0.0.1:99999", "::1:1", "1:-1"]
)
def test_what_is_no_address_and_port_is_refused(where: str) -> None:
    with pytest.raises(EndpointError, match="no address and port"):
        address(where)


def test_a_port_that_is_taken_is_said() -> None:
    async def main() -> None:
        listener = MetricsListener("127.0.0.1:0", snapshot)
        await listener.start()
        try:
            with pytest.raises(EndpointError, match="cannot listen on"):
                await MetricsListener(f"127.0.0.1:{listener.port}", snapshot).start()
        finally:
            listener.close()

    run(main())


SNAPSHOT = snapshot()


def test_one_that_is_closed_while_it_starts_leaves_nothing_in_the_loop() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        listener = MetricsListener("127.0.0.1:0", dict)
        listener.bind()
        descriptor = listener._bound.fileno()  # type: ignore[union-attr]
        starting = loop.create_task(listener.start())
        await asyncio.sleep(0)  # it has begun, and waits
        starting.cancel()
        listener.close()
        await asyncio.gather(starting, return_exceptions=True)
        assert descriptor not in loop._selector.get_map()  # type: ignore[attr-defined]

    asyncio.run(main())
