# SPDX-License-Identifier: Apache-2.0
"""``hvring bench compare A.json B.json``: two runs of the benchmarks side by side."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from hvring.cli import COMMANDS
from hvring.errors import HvringError

NOISE = 0.05
PEERS = ("DPDK", "linux_hv", "DPDK and eventfd")  # the first that both runs have is what is measured with


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "bench", help=COMMANDS["bench"], description="Work with results of the benchmarks."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    compare = verbs.add_parser(
        "compare",
        help="medians of two runs, and their ratio",
        description="Medians of two runs made with `pytest benchmarks --benchmark-json FILE`. Where a "
        "benchmark has a peer, the ratios to the peer are compared, which hold across machines better than times do. "
        "Says first in what the machines differ.",
    )
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    compare.add_argument("--all", action="store_true", help="also what changed by less than 5 %%")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Results:
    """Samples by benchmark and candidate, and the facts of the machine that they were taken on."""

    samples: dict[str, dict[str, list[float]]]
    machine: dict[str, object]


def load(path: Path) -> Results:
    """HvringError for a file that is no results file."""
    try:
        found = json.loads(path.read_text())
        benchmarks = {each["name"]: each["extra_info"] for each in found["benchmarks"]}
        samples = {name: dict(info["samples"]) for name, info in benchmarks.items() if "samples" in info}
        return Results(samples, dict(found["machine_info"]["hvring"]))
    except OSError as error:
        raise HvringError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise HvringError(f"{path} is no results file of the benchmarks") from None


def values(candidates: dict[str, list[float]], peer: str | None) -> dict[str, float]:
    """One number a candidate: the median of its ratios to the peer within each round, or without one its median."""
    if peer is None:
        return {name: median(samples) for name, samples in candidates.items()}
    return {
        name: median(ours / theirs for ours, theirs in zip(samples, candidates[peer], strict=True))
        for name, samples in candidates.items()
        if name != peer
    }


def run(args: argparse.Namespace) -> int:
    """Prints the table; 1 when nothing could be compared."""
    first, second = load(args.before), load(args.after)
    for fact in sorted(first.machine.keys() | second.machine.keys()):
        if first.machine.get(fact) != second.machine.get(fact):
            print(f"{fact}: {first.machine.get(fact, '?')} before, {second.machine.get(fact, '?')} after")
    before, after = first.samples, second.samples
    print(f"{'':72} {'before':>10} {'after':>10}   change")
    for test in (name for name in before if name in after):
        peer = next((each for each in PEERS if each in before[test] and each in after[test]), None)
        old, new = values(before[test], peer), values(after[test], peer)
        for name in (each for each in old if each in new):
            change = new[name] / old[name] - 1 if old[name] else float(new[name] != old[name])
            if args.all or abs(change) >= NOISE:
                what = f"{test} {name}" + (f" / {peer}" if peer else "")
                print(f"{what:72} {old[name]:10.2f} {new[name]:10.2f} {change:+8.1%}")
    for name in sorted(before.keys() ^ after.keys()):
        print(f"only in {args.before if name in before else args.after}: {name}")
    return 0 if before.keys() & after.keys() else 1
