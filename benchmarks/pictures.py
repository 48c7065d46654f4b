# SPDX-License-Identifier: Apache-2.0
"""The pictures of report.py: throughput over size, latency, growth with batch and ring, against limit and peers."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from report import Run

plt.rcParams["svg.hashsalt"] = "hvring"  # the same data give the same file


def draw(run: Run, folder: Path) -> list[Path]:
    """Writes the pictures that this run has the data for."""
    drawn = [
        over(run, "test_one_packet", "payload, bytes", "packets", folder),
        over(
            run,
            "test_from_a_page_aligned_buffer",
            "payload from a page-aligned buffer, bytes",
            "copies",
            folder,
        ),
        over(run, "test_a_pair_without_the_gil", "payload at C level, bytes", "cimport", folder),
        over(run, "test_over_the_batch", "packets in a batch", "batch", folder),
        over(run, "test_over_the_ring", "bytes of the ring, batches of 64", "ring", folder),
        latency(run, folder),
    ]
    return [path for path in drawn if path is not None]


def save(figure: Any, folder: Path, name: str) -> Path:
    path = folder / f"{name}.svg"
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def over(run: Run, test: str, axis: str, name: str, folder: Path) -> Path | None:
    """ns per packet, and millions of packets per second, of each candidate over the number in the test's name."""
    points: dict[str, list[tuple[int, float]]] = {}
    for full, found in run.tests.items():
        match = re.fullmatch(rf"{test}\[(\d+)\]", full)
        if match:
            for candidate, samples in found["samples"].items():
                points.setdefault(candidate, []).append((max(int(match[1]), 1), median(samples)))
    if not points:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for candidate, line in points.items():
        x, y = zip(*sorted(line), strict=True)
        style = ":" if candidate == "memcpy" else "--" if candidate == "DPDK" else "-"
        left.plot(x, y, style, marker=".", label=candidate)
        right.plot(x, [1e3 / each for each in y], style, marker=".", label=candidate)
    for part, label in ((left, "ns per packet, in and out"), (right, "million packets per second")):
        part.set(xscale="log", yscale="log", xlabel=axis, ylabel=label)
        part.grid(alpha=0.3, which="both")
    left.legend(fontsize=8)
    return save(figure, folder, name)


def latency(run: Run, folder: Path) -> Path | None:
    """Round trips: ns at the percentiles."""
    figure, parts = plt.subplots(1, 2, figsize=(11, 4))
    drawn = False
    for part, test in zip(parts, ("test_spinning", "test_sleeping"), strict=True):
        for candidate, found in run.tests.get(test, {}).get("percentiles", {}).items():
            part.plot([f"{int(p) / 100:g}" for p in found], list(found.values()), marker=".", label=candidate)
            drawn = True
        part.set(
            yscale="log", xlabel="percentile", ylabel="ns per round trip", title=test.removeprefix("test_")
        )
        part.grid(alpha=0.3)
        if drawn:
            part.legend(fontsize=8)
    if not drawn:
        plt.close(figure)
        return None
    return save(figure, folder, "latency")
