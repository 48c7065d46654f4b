# SPDX-License-Identifier: Apache-2.0
"""The extension of examples/cimport_ring, built for this interpreter: the ring at C level, without the GIL."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from measure import cache

import hvring.ring

ROOT = Path(__file__).parents[1]


def pump() -> ModuleType:
    """Built when it or a header is newer than the last time.  RuntimeError when it cannot be built."""
    folder = cache() / f"pump-{sysconfig.get_config_var('SOABI')}"
    headers = Path(hvring.ring.get_include())
    sources = [ROOT / "examples" / "cimport_ring" / "pump.pyx", *headers.glob("*.h"), *headers.glob("*.pxd")]
    built = next(iter(folder.glob("pump*.so")), None)
    if built is None or built.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "examples" / "cimport_ring", folder)
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(headers.parents[1]), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the example does not build: {done.stderr[-500:]}")
        built = next(folder.glob("pump*.so"))
    spec = importlib.util.spec_from_file_location("pump", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
