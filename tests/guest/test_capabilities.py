# SPDX-License-Identifier: Apache-2.0
"""What a process may do, as the kernel's file has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvring.guest.capabilities import Capability, has_any


@pytest.mark.parametrize(
    ("effective", "wanted", "has"),
    [
        ("0000000000200000", [Capability.SYS_ADMIN], True),
        ("0000000000200000", [Capability.DAC_OVERRIDE, Capability.DAC_READ_SEARCH], False),
        ("0000000000000004", [Capability.DAC_OVERRIDE, Capability.DAC_READ_SEARCH], True),
        ("000001ffffffffff", list(Capability), True),
        ("0000000000000000", list(Capability), False),
        ("0000000000200000", [], False),
    ],
)
def test_one_of_them_is_enough(tmp_path: Path, effective: str, wanted: list[Capability], has: bool) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text(f"Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective}\n")
    assert has_any(*wanted, proc=str(tmp_path)) is has


def test_without_the_file_there_is_none(tmp_path: Path) -> None:
    assert not has_any(*Capability, proc=str(tmp_path))
