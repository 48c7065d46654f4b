# SPDX-License-Identifier: Apache-2.0
"""hvring for the guest's Python: a wheel of a tree, built by that very Python, and unpacked."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

from lab.cache import Cache
from lab.root import PYTHON, headers, root

_SOURCES = {".py", ".pyi", ".pyx", ".pxi", ".pxd", ".h", ".c", ".typed"}
_BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
_KEPT = 3  # wheels of other trees stay for a while: one goes back and forth between branches


class WheelError(Exception):
    """The tree does not build; the text is the build's output."""


def sources(tree: Path) -> list[Path]:
    """The files that a wheel of ``tree`` is built of, without products of builds in place."""
    files = [tree / name for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")]
    files += sorted((tree / "hvring").rglob("*"))
    return [
        path
        for path in files
        if path.is_file()
        and not (path.suffix not in _SOURCES and path.parent != tree)
        and not (path.suffix == ".c" and path.with_suffix(".pyx").exists())
    ]


def from_tree(cache: Cache, tree: Path) -> Path:
    """A directory with the importable files of ``tree``, extensions compiled. Raises WheelError."""
    files = sources(tree)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(tree)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    name = f"wheels/{digest.hexdigest()[:16]}"

    def make(directory: Path) -> None:
        copy = directory / "tree"
        for path in files:
            (copy / path.relative_to(tree)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy / path.relative_to(tree))
        _build(cache, copy, directory)
        shutil.rmtree(copy)
        _unpack(cache, next(directory.glob("*.whl")), directory / "site")

    path = cache.stage(name, "1", make)
    (path / ".made").touch()
    made = sorted(path.parent.glob("*/.made"), key=lambda stamp: stamp.stat().st_mtime)
    for old in made[:-_KEPT]:
        shutil.rmtree(old.parent)
    return path / "site"


def from_wheel(cache: Cache, wheel: Path) -> Path:
    """The same of a wheel at hand (tagged cp313, abi3 or py3)."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return (
        cache.stage(f"wheels/{digest[:16]}", "1", lambda directory: _unpack(cache, wheel, directory / "site"))
        / "site"
    )


def _build(cache: Cache, tree: Path, target: Path) -> None:
    tool, include = root(cache), headers(cache)
    flags = f"-I{include}/usr/include/{PYTHON} -I{include}/usr/include"
    environment = {
        "PYTHONPATH": ":".join(f"{base}/usr/lib/python3/dist-packages" for base in (tool.path, include)),
        "CC": "gcc",
        "LDSHARED": "gcc -shared",
        "CFLAGS": flags,
    }
    try:
        tool.python("-c", _BUILD, target, env=environment, cwd=tree)
    except subprocess.CalledProcessError as error:
        raise WheelError(error.output.decode(errors="replace")) from None


def _unpack(cache: Cache, wheel: Path, site: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    root(cache).compile_python(site)
