# SPDX-License-Identifier: Apache-2.0
"""Whether this VM is isolated from its host. There nothing is taken from the kernel.

Its drivers are hardened against a host that lies, and accept only few devices; uio_hv_generic shares rings with the
host and with a program, which this kernel's authors did not have in mind.
"""

from __future__ import annotations

import os
import struct
from typing import Final

_ISOLATION: Final = 1 << 22  # of EBX of leaf 0x40000003, HV_ISOLATION
_HYPERV: Final = b"Microsoft Hv"
_BASE, _FEATURES, _CONFIGURATION = 0x40000000, 0x40000003, 0x4000000C
_TYPES: Final = {1: "VBS", 2: "AMD SEV-SNP", 3: "Intel TDX"}

# What a guest's kernel makes where it knows of its isolation by itself; nothing else makes these.
_IN_DEV: Final = {"sev-guest": "AMD SEV-SNP", "tdx_guest": "Intel TDX"}
_IN_SYSFS: Final = {
    "devices/system/cpu/sev/vmpl": "AMD SEV-SNP",
    "firmware/acpi/tables/CCEL": "confidential computing event log",
}
_SECONDS: Final = 5.0


def technology(
    sysfs: str | os.PathLike[str] = "/sys",
    dev: str | os.PathLike[str] = "/dev",
    proc: str | os.PathLike[str] = "/proc",
) -> str | None:
    """What isolates this VM from its host, such as ``AMD SEV-SNP``; None if nothing is known to.

    Looks at files below these directories. If they say nothing, and they are those of this machine, systemd is asked,
    which needs no right but is a program.
    """
    for name, title in _IN_DEV.items():
        if os.path.exists(os.path.join(dev, name)):
            return title
    for name, title in _IN_SYSFS.items():
        if os.path.exists(os.path.join(sysfs, name)):
            return title
    found = _by_cpuid(os.path.join(dev, "cpu/0/cpuid")) or _by_flag(os.path.join(proc, "cpuinfo"))
    if found is None and os.fspath(sysfs) == "/sys":
        found = _by_systemd()
    return found


def _by_cpuid(path: str) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # not root, or the kernel's module cpuid is not loaded
        return None
    try:
        most, *name = struct.unpack("<I4s4s4s", os.pread(descriptor, 16, _BASE))
        if b"".join(name) != _HYPERV or most < _CONFIGURATION:
            return None
        if not struct.unpack("<4I", os.pread(descriptor, 16, _FEATURES))[1] & _ISOLATION:
            return None
        kind = struct.unpack("<4I", os.pread(descriptor, 16, _CONFIGURATION))[1] & 0xF
    except (OSError, struct.error):
        return None
    finally:
        os.close(descriptor)
    return _TYPES.get(kind, f"isolation of type {kind}") if kind else None


def _by_flag(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return None
    return "Intel TDX" if "tdx_guest" in flags else None


def _by_systemd() -> str | None:
    """``systemd-detect-virt --cvm``, which systemd has since 254."""
    import subprocess

    try:
        done = subprocess.run(
            ["systemd-detect-virt", "--cvm"],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = done.stdout.decode(errors="replace").strip()
    return said if done.returncode == 0 and said not in ("", "none") else None
