# SPDX-License-Identifier: Apache-2.0
"""``hvring bench compare A.json B.json``: two runs of the benchmarks side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from hvring.errors import HvringError

NOISE = 0.05


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench", help="compare two runs of the benchmarks", description="Work with results of the benchmarks."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    compare = verbs.add_parser(
        "compare",
        help="medians of two runs, and their ratio",
        description="Medians of two runs made with `pytest benchmarks --benchmark-enable --benchmark-json FILE`. Where "
        "a benchmark has a peer, the ratios to the peer are compared, which hold across machines better than times do.",
    )
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    compare.add_argument("--all", action="store_true", help="also what changed by less than 5 %%")
    parser.set_defaults(run=run)


def load(path: Path) -> dict[str, dict[str, list[float]]]:
    """Samples by benchmark and candidate.  HvringError for a file that is no results file."""
    try:
        found = json.loads(path.read_text())
        return {each["name"]: dict(each["extra_info"]["samples"]) for each in found["benchmarks"]}
    except OSError as error:
        raise HvringError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise HvringError(f"{path} is no results file of the benchmarks") from None


def values(candidates: dict[str, list[float]]) -> dict[str, float]:
    """One number a candidate: in units of the peer of the same run where there is one, else its median."""
    peer = candidates.get("DPDK") or candidates.get("DPDK and eventfd")
    if not peer:
        return {name: median(samples) for name, samples in candidates.items()}
    return {
        name: median(ours / theirs for ours, theirs in zip(samples, peer, strict=True))
        for name, samples in candidates.items()
        if samples is not peer
    }


def run(args: argparse.Namespace) -> int:
    """Prints the table; 1 when nothing could be compared."""
    before, after = load(args.before), load(args.after)
    print(f"{'':64} {'before':>10} {'after':>10}   change")
    for test in (name for name in before if name in after):
        old, new = values(before[test]), values(after[test])
        for name in (each for each in old if each in new):
            change = new[name] / old[name] - 1 if old[name] else float(new[name] != old[name])
            if args.all or abs(change) >= NOISE:
                print(f"{test + ' ' + name:64} {old[name]:10.2f} {new[name]:10.2f} {change:+8.1%}")
    for name in sorted(before.keys() ^ after.keys()):
        print(f"only in {args.before if name in before else args.after}: {name}")
    return 0 if before.keys() & after.keys() else 1
