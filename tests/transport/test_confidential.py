# SPDX-License-Identifier: Apache-2.0
"""What tells a confidential VM, each sign alone."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from hvring.transport import confidential
from hvring.transport.binding import Binder
from hvring.transport.confidential import technology
from hvring.transport.errors import BindRefusedError
from hvring.transport.kernels import Kernel
from hvring.transport.sysfs import UIO_DRIVER

HYPERV = b"Microsoft Hv"
KVM = b"KVMKVMKVM\0\0\0"


@pytest.fixture
def cpuid(tmp_path: Path, monkeypatch) -> Callable[..., None]:
    """Makes the kernel's file of CPUID leaves. Unlike in another file, each number of a byte is one of a leaf."""
    path = tmp_path / "dev/cpu/0/cpuid"
    path.parent.mkdir(parents=True)

    def make(*, name: bytes = HYPERV, most: int = 0x4000000C, isolated: bool = True, kind: int = 2) -> None:
        leaves = {
            0x40000000: struct.pack("<I12s", most, name),
            0x40000003: struct.pack("<4I", 0, 1 << 22 if isolated else ~(1 << 22) & 0xFFFFFFFF, 0, 0),
            0x4000000C: struct.pack("<4I", 1, kind | 0xFFF0, 0, 0),
        }
        path.touch()
        monkeypatch.setattr(os, "pread", lambda fd, size, leaf: leaves[leaf][:size])

    return make


def look(root: Path) -> str | None:
    return technology(root / "sys", root / "dev", root / "proc")


@pytest.mark.parametrize(
    ("kind", "title"), [(1, "VBS"), (2, "AMD SEV-SNP"), (3, "Intel TDX"), (4, "type 4"), (0, None)]
)
def test_the_hypervisor_says_how_it_isolates(tmp_path: Path, cpuid, kind: int, title: str | None) -> None:
    cpuid(kind=kind)
    found = look(tmp_path)
    assert found is None if title is None else title in (found or "")


@pytest.mark.parametrize("other", [{"isolated": False}, {"name": KVM}, {"most": 0x4000000B}])
def test_only_hyper_v_is_understood_and_only_what_it_offers(tmp_path: Path, cpuid, other: dict) -> None:
    cpuid(**other)
    assert look(tmp_path) is None


def test_a_file_of_leaves_that_ends_early_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "dev/cpu/0").mkdir(parents=True)
    (tmp_path / "dev/cpu/0/cpuid").write_bytes(b"short")
    assert look(tmp_path) is None


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("dev/sev-guest", "AMD SEV-SNP"),
        ("dev/tdx_guest", "Intel TDX"),
        ("sys/devices/system/cpu/sev/vmpl", "AMD SEV-SNP"),
        ("sys/firmware/acpi/tables/CCEL", "event log"),
    ],
)
def test_what_a_kernel_makes_that_knows_of_its_isolation(tmp_path: Path, path: str, title: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    assert title in (look(tmp_path) or "")


@pytest.mark.parametrize(
    ("flags", "found"), [("fpu tdx_guest", "Intel TDX"), ("fpu tdx_host_platform", None)]
)
def test_the_flags_of_the_processor(tmp_path: Path, flags: str, found: str | None) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        f"processor : 0\nflags : {flags}\n\nprocessor : 1\nflags : {flags}\n"
    )
    assert look(tmp_path) == found


@pytest.mark.parametrize(
    ("does", "found"),
    [("echo sev-snp", "sev-snp"), ("echo none; exit 1", None), ("echo bad option >&2; exit 1", None)],
)
def test_systemd_is_asked_about_this_machine_only(
    tmp_path: Path, monkeypatch, does: str, found: str | None
) -> None:
    tool = tmp_path / "systemd-detect-virt"
    tool.write_text(f'#!/bin/sh\n[ "$*" = --cvm ] || exit 9\n{does}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert technology("/sys", tmp_path, tmp_path) == found
    assert technology(tmp_path, tmp_path, tmp_path) is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert confidential._by_systemd() is None


def test_nothing_is_bound_there_not_even_if_forced_and_everything_given_back(bus, tmp_path: Path) -> None:
    bus.load(UIO_DRIVER)
    bus.offer("heartbeat", "hv_utils")
    found: list[str | None] = [None]
    one = Binder(
        bus, state=tmp_path / "run", kernel=Kernel("6.17.13", (6, 17, 13)), isolation=lambda: found[0]
    )
    one.bind("heartbeat")
    found[0] = "VBS"
    one.unbind("heartbeat")
    done = len(bus.written)
    with pytest.raises(BindRefusedError, match=r"confidential \(VBS\)"):
        one.bind("heartbeat", force=True)
    assert bus.written[done:] == []
    assert bus.find("heartbeat").driver == "hv_utils"
