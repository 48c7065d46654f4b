# SPDX-License-Identifier: Apache-2.0
"""Who keeps the clock: what the kernel says, and who runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvring.guest.disciplines import DISCIPLINES, Discipline, Watch, disciplines, is_kept
from hvring.guest.holders import Holder


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return tmp_path


def runs(proc: Path, pid: int, name: str, unit: str = "") -> None:
    directory = proc / str(pid)
    directory.mkdir()
    (directory / "comm").write_text(f"{name[:15]}\n")
    (directory / "cgroup").write_text(f"0::/system.slice/{unit}\n")


def watch(proc: Path, *, kept: bool = True, monotonic=lambda: 0.0) -> Watch:
    return Watch(proc=str(proc), is_kept=lambda: kept, monotonic=monotonic)


@pytest.mark.parametrize("name", DISCIPLINES)
def test_each_of_them_is_found_by_its_name(proc: Path, name: str) -> None:
    runs(proc, 5, name, "its.service")
    runs(proc, 6, name, "its.service")  # its helper
    runs(proc, 7, "cat")
    assert disciplines(str(proc)) == [Holder(5, name[:15], "its.service")]
    assert str(watch(proc)()) == f"{name[:15]} (process 5, its.service)"


def test_a_program_that_only_runs_keeps_no_clock(proc: Path) -> None:
    """As `chronyd -x`, or one that has not heard of any time yet."""
    runs(proc, 5, "chronyd")
    assert watch(proc, kept=False)() is None


def test_a_clock_that_is_kept_by_somebody_unseen_is_kept(proc: Path) -> None:
    assert watch(proc)() == Discipline(())
    assert watch(proc / "missing")() == Discipline(())
    assert str(Discipline(())) == "a program that cannot be seen from here"


def test_a_host_that_asks_often_has_processes_listed_rarely(proc: Path) -> None:
    now = 0.0
    asked = watch(proc, monotonic=lambda: now)
    runs(proc, 5, "chronyd")
    first = asked()
    runs(proc, 6, "ntpd")
    now = 59.0
    assert asked() is first
    now = 60.0
    again = asked()
    assert again is not None
    assert [holder.name for holder in again.holders] == ["chronyd", "ntpd"]


def test_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from hvring.guest import _ntp

    kept, largest = _ntp.kernel_state()
    assert is_kept() is kept
    assert largest >= 0

    def refuse() -> tuple[bool, int]:
        raise PermissionError(1, "adjtimex")

    monkeypatch.setattr(_ntp, "kernel_state", refuse)
    assert is_kept() is False
