# SPDX-License-Identifier: Apache-2.0
"""The middle layer's user space, unpacked, which also holds the lab's tools; and headers to build against."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.cache import Cache
from lab.debian import unpack

PYTHON = "python3.13"
_PACKAGES = (
    "qemu-system-x86",
    "busybox-static",
    f"{PYTHON}-minimal",
    f"lib{PYTHON}-stdlib",
    "libstdc++6",
    "e2fsprogs",
    "squashfs-tools",
    "zstd",
    "python3-setuptools",
)
_HEADERS = (f"lib{PYTHON}-dev", "libgio-2.0-dev")
_CYTHON = "cython3/testing"  # hvring needs 3.1; the pure-Python half of the package runs on any Python
_QEMU_PARTS = ("include/", "scripts/", "qapi/", "host/include/", "linux-headers/")
_NOT_INHERITED = ("PYTHON", "HVRING_")  # variables that would change what is built


class Root:
    """Debian's programs, run on this machine from where they were unpacked, through their own loader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def qemu_version(self) -> str:
        """The version of QEMU's package."""
        return (self.path / "qemu-version").read_text()

    @property
    def key(self) -> str:
        """Text that changes with what is in the root, for the recipes of what is made of it."""
        return f"{(self.path / '.made').read_text()} {self.qemu_version}"

    def command(self, program: str, *arguments: object) -> list[str]:
        """The argument list that runs ``program`` (a path below the root)."""
        loader = self.path / "lib64/ld-linux-x86-64.so.2"
        libraries = self.path / "usr/lib/x86_64-linux-gnu"
        return [str(a) for a in (loader, "--library-path", libraries, self.path / program, *arguments)]

    def run(self, program: str, *arguments: object, **options: Any) -> None:
        """Run it; CalledProcessError if it fails."""
        subprocess.run(self.command(program, *arguments), check=True, **options)

    def python(
        self, *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        """Run the guest's Python here, silently; CalledProcessError carries what it printed."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        own |= {**(env or {}), "PYTHONHOME": str(self.path / "usr"), "PYTHONNOUSERSITE": "1"}
        command = self.command(f"usr/bin/{PYTHON}", *arguments)
        subprocess.run(
            command, env=own, cwd=cwd, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def compile_python(self, directory: Path) -> None:
        """Write .pyc files that are trusted as they are: emulated machines compile slowly."""
        self.python(
            "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", directory, directory
        )


def root(cache: Cache) -> Root:
    """QEMU, busybox, Python and tools (150 MB of packages at the first call)."""

    def make(directory: Path) -> None:
        archive = cache.archive
        packages = archive.closure(*_PACKAGES)
        for name in ("bin", "sbin", "lib", "lib64"):
            (directory / "usr" / name).mkdir(parents=True)
            (directory / name).symlink_to(f"usr/{name}")
        for name in ("proc", "sys", "dev", "run", "tmp", "lab"):
            (directory / name).mkdir()
        unpack(packages, directory)
        for package in packages:
            package.unlink()
        (directory / "qemu-version").write_text(archive.field("qemu-system-x86", "Version"))
        library = directory / "usr/lib" / PYTHON
        shutil.rmtree(library / "test", ignore_errors=True)
        Root(directory).compile_python(library)

    return Root(cache.stage("root", "1 " + " ".join(_PACKAGES), make))


def headers(cache: Cache) -> Path:
    """Headers of Python, GLib and QEMU (with the generated QAPI ones), and Cython, for what is built here."""
    version = root(cache).qemu_version

    def make(directory: Path) -> None:
        archive = cache.archive
        packages = archive.download(directory / "packages", *_HEADERS, _CYTHON)
        unpack(packages, directory)
        source = archive.source(directory / "packages", "qemu", version)
        with tarfile.open(source) as tar:
            _unpack_qemu(tar, directory)
        shutil.rmtree(directory / "packages")
        for compiled in (directory / "usr/lib/python3").rglob("*.so"):
            compiled.unlink()  # built for another Python and another C library
        qemu = directory / "qemu"
        (directory / "generated/qapi").mkdir(parents=True)
        generator = [
            sys.executable,
            "-B",
            "scripts/qapi-gen.py",
            "-o",
            "../generated/qapi",
            "-b",
            "qapi/qapi-schema.json",
        ]
        subprocess.run(generator, cwd=qemu, env=dict(os.environ, PYTHONPATH="scripts"), check=True)

    return cache.stage("headers", " ".join(("1", *_HEADERS, _CYTHON, version)), make)


def _unpack_qemu(tar: tarfile.TarFile, directory: Path) -> None:
    """Only the parts that hv-ic.c and the QAPI generator look at, as ``directory``/qemu."""
    for member in tar:
        _, _, path = member.name.partition("/")
        if path.startswith(_QEMU_PARTS) and ".." not in path and (file := tar.extractfile(member)):
            target = directory / "qemu" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read())
