# SPDX-License-Identifier: Apache-2.0
"""The clock effects. Nothing here sets the clock of this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.clock import RehearsedClock, SystemClock


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return tmp_path / "available_clocksource"


@pytest.fixture
def msr(tmp_path: Path) -> Path:
    """A file with a counter at the place of the MSR (and a hole before it)."""
    path = tmp_path / "msr"
    with path.open("wb") as file:
        os.pwrite(file.fileno(), (123456789).to_bytes(8, "little"), 0x40000020)
    return path


def test_now_is_the_time_in_nanoseconds() -> None:
    before = time.time_ns()
    now = SystemClock().now()
    assert before <= now <= time.time_ns()


def test_the_reference_counter_is_read_under_hyper_v_only(msr: Path, sources: Path) -> None:
    clock = SystemClock(msr=str(msr), clocksources=str(sources))
    assert clock.reference() is None
    sources.write_text("tsc hyperv_clocksource_tsc_page acpi_pm\n", encoding="utf-8")
    assert SystemClock(msr=str(msr), clocksources=str(sources)).reference() == 123456789
    sources.write_text("tsc kvm-clock acpi_pm\n", encoding="utf-8")
    assert SystemClock(msr=str(msr), clocksources=str(sources)).reference() is None


def test_a_counter_that_cannot_be_read_is_none(tmp_path: Path, sources: Path) -> None:
    sources.write_text("hyperv_clocksource_tsc_page\n", encoding="utf-8")
    short = tmp_path / "short"
    short.write_bytes(b"")
    for path in (tmp_path / "missing", short):
        assert SystemClock(msr=str(path), clocksources=str(sources)).reference() is None


def test_the_clock_is_set_through_clock_settime(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(time, "clock_settime_ns", lambda clock, ns: calls.append((clock, ns)))
    SystemClock().set(1_700_000_000_123_456_789)
    assert calls == [(time.CLOCK_REALTIME, 1_700_000_000_123_456_789)]


@pytest.mark.parametrize("problem", [PermissionError(1, "Operation not permitted"), OverflowError("too big")])
def test_a_clock_that_cannot_be_set_is_an_effect_error(
    monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def refuse(clock: int, ns: int) -> None:
        raise problem

    monkeypatch.setattr(time, "clock_settime_ns", refuse)
    with pytest.raises(EffectError, match="cannot set the clock"):
        SystemClock().set(0)


def test_a_rehearsed_clock_shows_the_time_and_records_what_it_would_be_set_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "clock_settime_ns", lambda *_: pytest.fail("it set the clock"))
    clock = RehearsedClock()
    clock.set(42)
    assert clock.settings == [42]
    assert clock.now() > 1_000_000_000_000_000_000
    assert clock.reference() == SystemClock().reference()
