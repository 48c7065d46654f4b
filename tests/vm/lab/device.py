# SPDX-License-Identifier: Apache-2.0
"""hv-ic.so: the device that QEMU itself has not."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from lab.cache import Cache
from lab.root import headers, root

_HERE = Path(__file__).parent


def device(cache: Cache) -> Path:
    """Path of hv-ic.so, built against the headers of the root's QEMU; it checks at its start that it fits."""
    sources = [_HERE / name for name in ("hv-ic.c", "config-host.h")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    recipe = f"{digest} {root(cache).qemu_version}"
    if cache.has("device", recipe):
        return cache.directory / "device/hv-ic.so"
    include = headers(cache)

    def make(directory: Path) -> None:
        (directory / "config-poison.h").touch()
        places = (
            _HERE,
            directory,
            include / "qemu/include",
            include / "qemu/host/include/x86_64",
            include / "qemu/host/include/generic",
            include / "qemu/linux-headers",
            include / "generated",
            include / "usr/include/glib-2.0",
            include / "usr/lib/x86_64-linux-gnu/glib-2.0/include",
        )
        flags = ["-shared", "-fPIC", "-O2", "-g0", "-s", "-std=gnu11", "-Wall", "-D_GNU_SOURCE"]
        flags += [f"-I{place}" for place in places]
        subprocess.run(["gcc", *flags, sources[0], "-o", directory / "hv-ic.so"], check=True)

    return cache.stage("device", recipe, make) / "hv-ic.so"
