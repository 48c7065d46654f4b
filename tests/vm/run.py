#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run scenarios against guests on a real VMBus: see README.md.

Exit status: 0 all is well, 1 something is not, 77 the lab cannot run here (the last line says why).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from lab import UnavailableError, device, images, kernels, machine, needs, root, scenarios, wheel
from lab.cache import Cache, default_directory
from lab.table import Row, render

_TREE = Path(__file__).parents[2]
_OUTER_KERNEL = "6.12"
_BOOT_SECONDS = 150
_UNAVAILABLE = 77


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kernel",
        action="append",
        metavar="6.12|6.12.57|newest|FILE.deb[,FILE.deb…][:NAME[,NAME…]]",
        help="a guest kernel (see --list-kernels), or package files, and, if not those of --scenario, its scenarios; "
        "may be repeated; default: 6.12",
    )
    parser.add_argument(
        "--jobs",
        type=_count,
        metavar="N",
        help="machines side by side; default: one for each core, at most 2",
    )
    parser.add_argument("--scenario", action="append", metavar="NAME", help="may be repeated; default: all")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where logs and results go; default: a temporary directory"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the temporary directory also if all is well"
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="a cp313 wheel of hvring instead of building this tree"
    )
    parser.add_argument("--refresh", action="store_true", help="fetch Debian's package lists anew")
    parser.add_argument(
        "--list-kernels", action="store_true", help="print the kernels that Debian serves, and end"
    )
    parser.add_argument("--verbose", action="store_true", help="print the consoles as the machines run")
    return parser.parse_args()


def _parts(cache: Cache, wheel_file: Path | None) -> machine.Parts:
    tool = root.root(cache)
    site = wheel.from_wheel(cache, wheel_file) if wheel_file else wheel.from_tree(cache, _TREE)
    outer = kernels.kernel(cache, _OUTER_KERNEL)
    return machine.Parts(
        tool=tool,
        outer_kernel=outer,
        outer_initramfs=images.middle_initramfs(cache, outer),
        middle_disk=images.middle_disk(cache),
        guest_base=images.guest_base(cache),
        device=device.device(cache),
        middle=Path(__file__).parent / "middle",
        trees=(
            ("site", site),
            ("t", scenarios.DIRECTORY),
            ("oracle", _TREE / "tests/oracle"),
            ("examples", _TREE / "examples"),
        ),
    )


def _guest(cache: Cache, wanted: str) -> kernels.Kernel:
    if wanted.endswith(".deb"):
        return kernels.kernel_from_files(cache, [Path(name) for name in wanted.split(",")])
    return kernels.kernel(cache, wanted)


def _boot(
    parts: machine.Parts,
    kernel: kernels.Kernel,
    group: Sequence[scenarios.Scenario],
    out: Path,
    verbose: bool,
) -> list[Row]:
    """Run a group of scenarios in one boot; its rows."""
    names = [scenario.name for scenario in group]
    name = f"{kernel.release}-{'+'.join(names)}"
    here = out / name
    shutil.rmtree(here, ignore_errors=True)
    plan = {"kernel": kernel.release, "guest": group[0].guest, "scenarios": names}
    limit = _BOOT_SECONDS + _seconds(group)

    def echo(line: str) -> None:
        """Whole lines that say where they come from: another machine's may stand between them."""
        if verbose:
            print(f"{name}| {line}", flush=True)
        elif " CHECK " in line:
            print(f"{kernel.release}: {line.partition(' CHECK ')[2]}", flush=True)

    start = time.monotonic()
    print(f"-- {kernel.release}: {', '.join(names)}", flush=True)
    in_time = machine.run(parts, kernel, plan, here, limit, echo)
    print(f"-- {kernel.release}: {', '.join(names)}: {time.monotonic() - start:.0f} s", flush=True)
    try:
        results = json.loads((here / "results.json").read_text())
    except FileNotFoundError:
        results = []
    rows = [Row(kernel.release, **result) for result in results if "end" not in result]
    if not results or "end" not in results[-1]:
        why = "it broke off" if in_time else f"it was stopped after {limit:.0f} s"
        why += f"; see {here}/log.txt"
        rows.append(
            Row(kernel.release, group[-1].name, "the_run_ends", "FAILED", time.monotonic() - start, [why])
        )
    return rows


def _seconds(group: Sequence[scenarios.Scenario]) -> float:
    return sum(scenario.seconds for scenario in group)


def _run(cache: Cache, arguments: argparse.Namespace, jobs: int) -> int:
    default = arguments.scenario or scenarios.names()
    plan = [scenarios.of_kernel(wanted, default) for wanted in arguments.kernel or [_OUTER_KERNEL]]
    chosen = [(kernel, scenarios.boots([scenarios.read(name) for name in names])) for kernel, names in plan]
    with cache.locked():
        parts = _parts(cache, arguments.wheel)
        guests = [(_guest(cache, kernel), groups) for kernel, groups in chosen]
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="hvring-lab-"))).resolve()
    boots = [(kernel, group) for kernel, groups in guests for group in groups]
    pool = ThreadPoolExecutor(jobs)
    try:
        # the longest first: what comes last runs alone
        running = {
            n: pool.submit(_boot, parts, *boots[n], out, arguments.verbose)
            for n in sorted(range(len(boots)), key=lambda n: -_seconds(boots[n][1]))
        }
        rows = [row for n in range(len(boots)) for row in running[n].result()]
    finally:
        pool.shutdown(cancel_futures=True)
    (out / "results.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print("\n" + render(rows))
    failed = any(row.status == "FAILED" for row in rows)
    if arguments.out or arguments.keep or failed:
        print(f"logs and results: {out}")
    else:
        shutil.rmtree(out)
    return int(failed)


def main() -> int:
    arguments = _arguments()
    try:
        needs.check(default_directory())
        cache = Cache(default_directory(), lambda text: print(f"-- {text}", flush=True))
        if arguments.refresh:
            cache.refresh()
        if arguments.list_kernels:
            print("\n".join(kernels.served(cache)))
            return 0
        return _run(cache, arguments, needs.jobs(arguments.jobs))
    except UnavailableError as error:
        print(f"skipped: {error}")
        return _UNAVAILABLE
    except wheel.WheelError as error:
        print(f"{error}\nFAILED: this tree does not build for the guest's Python")
        return 1


if __name__ == "__main__":
    sys.exit(main())
