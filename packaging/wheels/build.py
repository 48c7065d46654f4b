#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build and try a wheel for each interpreter: ``packaging/wheels/build.py --out dist PYTHON…``.

From a source distribution: of this tree, or ``--sdist FILE`` in a chroot that has these two scripts only.  Each wheel
is installed alone, without NumPy, and tried by ``smoke.py`` from outside of the tree.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@dataclass
class Row:
    """What became of one interpreter's wheel."""

    python: str
    wheel: str = "-"
    seconds: float = 0.0
    says: str = ""
    worked: bool = False


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[0]} …: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def source(work: Path, python: str) -> Path:
    """The source distribution, made from the files that git knows."""
    tree = work / "tree"
    names = run("git", "ls-files", cwd=ROOT).split("\n")
    for name in filter(None, names):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    venv(python, work / "build")
    run(work / "build/bin/pip", "install", "-q", "build", cwd=work)
    run(work / "build/bin/python", "-m", "build", "--sdist", "-o", work / "sdist", tree, cwd=work)
    return next((work / "sdist").iterdir())


def venv(python: str, where: Path) -> None:
    run(python, "-m", "venv", where, cwd=where.parent)


def check_contents(wheel: Path) -> None:
    """The package and what types need; neither tests nor what the extensions are made from, but for cimport."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in names if name.startswith("hvring/")}
    strangers = {
        n for n in names - package if ".dist-info/" not in n and not n.split("/")[0].endswith(".data")
    }
    assert not strangers, f"not of the package: {sorted(strangers)[:5]}"
    assert "hvring/py.typed" in package
    assert not [name for name in package if name.endswith((".c", ".pyx", ".pxi"))]
    for library in (name for name in package if name.endswith(".so")):
        assert f"{library.split('.')[0]}.pyi" in package or library.split("/")[-1].startswith("_"), library


def make(python: str, sdist: Path, work: Path, out: Path) -> Row:
    row, began = Row(python), time.monotonic()
    try:
        version = run(python, "-c", "import sys; print(sys.version.split()[0])", cwd=work).strip()
        own = work / f"wheel-{version}-{abs(hash(python))}"
        own.mkdir()
        venv(python, own / "build")
        run(own / "build/bin/pip", "wheel", "-q", "--no-deps", "-w", own, sdist, cwd=own)
        (wheel,) = own.glob("*.whl")
        row.seconds = time.monotonic() - began
        check_contents(wheel)
        venv(python, own / "bare")
        run(own / "bare/bin/pip", "install", "-q", "--no-deps", wheel, cwd=own)
        row.says = run(own / "bare/bin/python", HERE / "smoke.py", cwd=own).strip()
        shutil.copy2(wheel, out)
        row.wheel = wheel.name
        row.worked = True
    except (RuntimeError, AssertionError) as error:
        row.says = str(error)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("dist"), metavar="DIR")
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="default: made from this tree")
    parser.add_argument("python", nargs="+", metavar="PYTHON", help="an interpreter with venv and headers")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="wheels-") as scratch:
        work = Path(scratch)
        sdist = args.sdist.resolve() if args.sdist else source(work, sys.executable)
        if not args.sdist:
            shutil.copy2(sdist, args.out)
        for python in args.python:
            print(f"… {python}", file=sys.stderr, flush=True)
            found = os.path.abspath(shutil.which(python) or python)  # not resolved: a venv's is a link
            rows.append(make(found, sdist, work, args.out.resolve()))
    for row in rows:
        print(f"{'ok    ' if row.worked else 'FAILED'} {row.wheel}  built in {row.seconds:.0f} s  {row.says}")
    return 0 if all(row.worked for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
