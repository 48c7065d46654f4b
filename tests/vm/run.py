#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run scenarios against guests on a real VMBus: see README.md. Exit status: 0 all ok, 1 not, 77 the lab cannot run here."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from lab import UnavailableError, device, images, kernels, machine, needs, root, scenarios, wheel
from lab.cache import Cache, default_directory
from lab.debian import RELEASE
from lab.table import Row, render

_TREE = Path(__file__).parents[2]
_BOOT_SECONDS = 150
_UNAVAILABLE = 77


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kernel",
        action="append",
        metavar="6.12|6.12.57|newest|FILE.deb[,FILE.deb…]",
        help="a guest kernel that Debian serves (see --list-kernels), or package files; may be repeated; default: 6.12",
    )
    parser.add_argument("--scenario", action="append", metavar="NAME", help="may be repeated; default: all")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where logs and results go; default: a temporary directory")
    parser.add_argument("--keep", action="store_true", help="keep the temporary directory also if all is well")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="a cp313 wheel of hvring instead of building this tree")
    parser.add_argument("--refresh", action="store_true", help="fetch Debian's package lists anew")
    parser.add_argument("--list-kernels", action="store_true", help="print the kernels that Debian serves, and end")
    parser.add_argument("--verbose", action="store_true", help="print the consoles as the machines run")
    return parser.parse_args()


def _parts(cache: Cache, wheel_file: Path | None) -> machine.Parts:
    tool = root.root(cache)
    site = wheel.from_wheel(cache, wheel_file) if wheel_file else wheel.from_tree(cache, _TREE)
    outer = kernels.kernel(cache, f"{RELEASE}'s")
    return machine.Parts(
        tool=tool,
        outer_kernel=outer,
        outer_initramfs=images.middle_initramfs(cache, outer),
        middle_disk=images.middle_disk(cache),
        guest_base=images.guest_base(cache),
        device=device.device(cache),
        middle=Path(__file__).parent / "middle",
        trees=(("site", site), ("t", scenarios.DIRECTORY)),
    )
