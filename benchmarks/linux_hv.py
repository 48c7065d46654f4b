# SPDX-License-Identifier: Apache-2.0
"""The ring of Linux's tools/hv, out of the distribution's own kernel source package, driven by linux_hv.c.

The package has 150 MB: it is fetched once, two files are taken out of the archive in it, and the rest is thrown away.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from pathlib import Path

from measure import cache
from peers import FLAGS, HERE, Unavailable, kept, load, need, run

FILES = ("vmbus_bufring.c", "vmbus_bufring.h")
FIRST = (6, 10)  # the first version that has them


def library() -> ctypes.CDLL:
    """The loops over that ring, built once.  Raises Unavailable with the reason."""
    path = kept("linux_hv_peer", "linux_hv.c", "peer_loops.h")
    if not path.exists():
        folder = cache() / "linux_hv"
        if not all((folder / name).exists() for name in FILES):
            fetch(folder)
        sources = [str(HERE / "linux_hv.c"), str(folder / FILES[0])]
        run(["cc", *FLAGS, "-D_GNU_SOURCE", "-I", str(folder), "-o", str(path), *sources], folder)
    return load(path)


def fetch(folder: Path, names: tuple[str, ...] = FILES) -> None:
    """These files of tools/hv into `folder`."""
    need("apt-get", "apt-cache", "dpkg-deb", "tar", "xz", "cc")
    with tempfile.TemporaryDirectory(dir=cache()) as work:
        run(["apt-get", "download", "-q", package()], Path(work), 300)
        deb = next(Path(work).glob("linux-source-*.deb"))
        unpack(deb, Path(work), names)
        folder.mkdir(exist_ok=True)
        for name in names:
            (Path(work) / name).replace(folder / name)


def package() -> str:
    """The newest kernel source that apt knows.  Raises Unavailable when there is none that is new enough."""
    found = run(["apt-cache", "search", "--names-only", r"^linux-source-[0-9]+\.[0-9]+$"], Path("/"))
    versions = [tuple(map(int, each)) for each in re.findall(r"^linux-source-(\d+)\.(\d+) ", found, re.M)]
    if not versions or max(versions) < FIRST:
        raise Unavailable("apt knows no linux-source of 6.10 or newer (apt-get update?)")
    return "linux-source-{}.{}".format(*max(versions))


def unpack(deb: Path, folder: Path, names: tuple[str, ...] = FILES) -> None:
    """The files out of the archive in the package; stops reading when it has all."""
    pipe = subprocess.PIPE
    quiet = subprocess.DEVNULL
    inner = ["tar", "xO", "--wildcards", "./usr/src/linux-source-*.tar.xz"]
    wanted = [f"*/tools/hv/{name}" for name in names]
    pick = ["tar", "xJ", "--wildcards", "--occurrence=1", "--strip-components=3", *wanted]
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=pipe, stderr=quiet) as package,
        subprocess.Popen(inner, stdin=package.stdout, stdout=pipe, stderr=quiet) as archive,
    ):
        assert package.stdout is not None
        assert archive.stdout is not None
        done = subprocess.run(
            pick, stdin=archive.stdout, cwd=folder, capture_output=True, text=True, check=False
        )
        for each in (package, archive):  # they may be ended in the middle
            assert each.stdout is not None
            each.stdout.close()
    if done.returncode or not all((folder / name).exists() for name in names):
        raise Unavailable(f"{deb.name} has no {', '.join(names)}: {done.stderr.strip()[-200:]}")
