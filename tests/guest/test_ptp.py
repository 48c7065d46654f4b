# SPDX-License-Identifier: Apache-2.0
"""The kernel's clock of Hyper-V, over files and clocks of the test's own."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.ptp import NoSamplesError, hyperv_clocks, ptp_clocks, read_clock

SECOND = 10**9
NOW = 1_800_000_000 * SECOND


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., None]:
    """``make("ptp0", "hyperv")``."""

    def make(name: str, title: str | None) -> None:
        directory = tmp_path / "sys/class/ptp" / name
        directory.mkdir(parents=True)
        if title is not None:
            (directory / "clock_name").write_text(f"{title}\n")

    return make


@pytest.fixture
def node(tmp_path: Path) -> str:
    (tmp_path / "ptp0").touch()
    return str(tmp_path / "ptp0")


def ticking(*times: int) -> Callable[[], int]:
    clock = iter(times)
    return lambda: next(clock)


def test_clocks_are_found_by_their_names_and_in_order(tmp_path: Path, make) -> None:
    for name, title in (("ptp10", "hyperv"), ("ptp2", "mlx5_ptp"), ("ptp0", None), ("ptpx", "hyperv")):
        make(name, title)
    where = (str(tmp_path / "sys"), "/dev")
    assert [(c.name, c.title) for c in ptp_clocks(*where)] == [
        ("ptp0", ""),
        ("ptp2", "mlx5_ptp"),
        ("ptp10", "hyperv"),
    ]
    assert [c.node for c in hyperv_clocks(*where)] == ["/dev/ptp10"]
    assert ptp_clocks(str(tmp_path / "nowhere")) == []


def test_the_narrowest_of_some_looks_counts(node: str) -> None:
    times = ticking(0, 9000, 10_000, 10_100, 20_000, 25_000)
    clock = ticking(*(7 * SECOND + t for t in (8000, 10_049, 21_000)))
    found = read_clock(node, looks=3, show=lambda _: clock(), now=times)
    assert (found.offset_ns, found.uncertainty_ns) == (7 * SECOND - 1, 50)


def test_the_host_may_be_behind(node: str) -> None:
    found = read_clock(node, looks=1, show=lambda _: NOW - 3 * SECOND, now=ticking(NOW - 5, NOW + 6))
    assert found.offset_ns == -3 * SECOND
    assert found.uncertainty_ns == 6


def test_a_wall_clock_that_is_set_amid_a_look_does_not_win(node: str) -> None:
    times = ticking(NOW, NOW - 3600 * SECOND, NOW, NOW + 100)
    found = read_clock(node, looks=2, show=lambda _: NOW + 50, now=times)
    assert (found.offset_ns, found.uncertainty_ns) == (0, 50)


def test_the_clock_id_is_that_of_the_open_device_and_nothing_stays_open(node: str) -> None:
    ids: list[int] = []

    def show(clock_id: int) -> int:
        ids.append(clock_id)
        assert os.path.samestat(os.fstat(~(clock_id >> 3)), os.stat(node))
        assert clock_id & 7 == 3
        return NOW

    read_clock(node, looks=2, show=show, now=lambda: NOW)
    assert len(set(ids)) == 1
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(~(ids[0] >> 3))


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.ESTALE, NoSamplesError, "for more than 600 s"),
        (errno.EINVAL, EffectError, "cannot read .*Invalid argument"),
        (errno.ENODEV, EffectError, "No such device"),
    ],
)
def test_what_the_kernel_says_instead_of_a_time(
    node: str, number: int, kind: type[EffectError], says: str
) -> None:
    def refuse(_: int) -> int:
        raise OSError(number, os.strerror(number))

    before = os.listdir("/proc/self/fd")
    with pytest.raises(kind, match=says):
        read_clock(node, show=refuse)
    assert os.listdir("/proc/self/fd") == before


def test_a_regular_file_is_no_clock(node: str) -> None:
    """The kernel's own answer, through the real call."""
    with pytest.raises(EffectError, match="cannot read"):
        read_clock(node)


@pytest.mark.parametrize("up", [0, 1, 599])
def test_before_the_first_message_the_kernel_shows_1601_wrapped_around(node: str, up: int) -> None:
    """hv_utils adds the counter to zeros, and 64 bits make the year 2185 of 1601."""
    shown = ((up * 10**7 - 116444736000000000) * 100) % 2**64
    with pytest.raises(NoSamplesError, match="yet"):
        read_clock(node, show=lambda _: shown)


def test_a_node_that_is_not_there_or_not_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(EffectError, match=r"cannot open .*ptp7: No such file"):
        read_clock(str(tmp_path / "ptp7"))


def test_no_looks_are_asked_for_wrongly(node: str) -> None:
    with pytest.raises(ValueError, match="at least one"):
        read_clock(node, looks=0)


def test_the_wall_clock_itself_is_off_by_nothing_but_the_uncertainty(node: str) -> None:
    shown: list[int] = []

    def show(_: int) -> int:
        shown.append(time.time_ns())
        return shown[-1]

    found = read_clock(node, looks=20, show=show)
    assert len(shown) == 20
    assert abs(found.offset_ns) <= found.uncertainty_ns
