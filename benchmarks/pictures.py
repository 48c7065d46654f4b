# SPDX-License-Identifier: Apache-2.0
"""The pictures of report.py: throughput over size, latency, growth with batch and ring, against limit and peers."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from targets import ROWS, Run

plt.rcParams["svg.hashsalt"] = "hvring"  # the same data give the same file
plt.rcParams["svg.fonttype"] = "none"  # text stays text: small files
plt.rcParams["font.size"] = 9

PEERS = {"DPDK": "tab:green", "linux_hv": "tab:blue"}  # dashed
LIMITS = {"memcpy": "0.2", "two empty calls": "0.6"}  # dotted
OURS = ["tab:red", "tab:orange", "tab:purple", "tab:pink", "tab:olive"]

OVER = (  # file, test with the number that grows, title, axis
    ("packets", r"test_one_packet\[(\d+)\]", "one packet in and out, a Python call each", "payload, bytes"),
    (
        "copies",
        r"test_from_a_page_aligned_buffer\[(\d+)\]",
        "from and to page-aligned buffers",
        "payload, bytes",
    ),
    ("cimport", r"test_a_pair_without_the_gil\[(\d+)\]", "cimport, without the GIL", "payload, bytes"),
    ("batch", r"test_over_the_batch\[(\d+)\]", "64 bytes, ring of 128 KiB", "packets in a batch"),
    ("ring", r"test_over_the_ring\[(\d+)\]", "64 bytes, batches of 64", "bytes in the ring"),
)


def draw(run: Run, folder: Path) -> list[Path]:
    """Writes the pictures that this run has the data for."""
    drawn = [over(run, folder, *each) for each in OVER]
    drawn += [
        between(run, folder),
        ways(run, folder),
        latency(run, folder),
        growth(run, folder),
        services(run, folder),
    ]
    return [path for path in drawn if path is not None]


def save(figure: Any, folder: Path, name: str) -> Path:
    path = folder / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def looks(candidate: str, ours: int) -> dict[str, Any]:
    """How a line is drawn; `ours`: how many of ours came before."""
    if candidate in LIMITS:
        return {"color": LIMITS[candidate], "linestyle": ":", "label": f"limit: {candidate}"}
    if candidate.startswith("memcpy"):
        return {"color": "tab:brown", "linestyle": ":", "label": candidate}
    for peer, color in PEERS.items():
        if candidate.startswith(peer):
            return {"color": color, "linestyle": "--", "label": f"{candidate}, in C"}
    return {"color": OURS[ours % len(OURS)], "linewidth": 2, "label": candidate}


def number(value: float, _position: object = None) -> str:
    if value >= 1 << 20 and value % (1 << 20) == 0:
        return f"{value / (1 << 20):g} Mi"
    if value >= 1 << 10 and value % (1 << 10) == 0:
        return f"{value / (1 << 10):g} Ki"
    return f"{value:g}"


def over(run: Run, folder: Path, name: str, test: str, title: str, axis: str) -> Path | None:
    """ns per packet, and millions of packets per second, of each candidate over the number in the test's name."""
    points: dict[str, list[tuple[int, float]]] = {}
    for full, found in run.tests.items():
        if match := re.fullmatch(test, full):
            for candidate, samples in found["samples"].items():
                points.setdefault(candidate, []).append((int(match[1]), median(samples)))
    if not points:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    ours = 0
    for candidate, line in points.items():
        x, y = zip(*sorted(line), strict=True)
        style = looks(candidate, ours)
        ours += "linewidth" in style
        left.plot(x, y, marker=".", **style)
        if candidate != "two empty calls":
            right.plot(x, [1e3 / each for each in y], marker=".", **style)
    ticks = sorted({x for line in points.values() for x, _ in line})
    for part, label in ((left, "ns per packet"), (right, "million packets per second")):
        part.set_xscale("symlog", base=2, linthresh=16) if ticks[0] == 0 else part.set_xscale("log", base=2)
        part.set(xlabel=axis, ylabel=label, title=title)
        part.set_xticks(spread(ticks))
        part.xaxis.set_minor_locator(NullLocator())
        part.xaxis.set_major_formatter(FuncFormatter(number))
        logarithmic(part)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return save(figure, folder, name)


def logarithmic(part: Any) -> None:
    part.set_yscale("log")
    part.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    part.yaxis.set_major_formatter(FuncFormatter(number))
    part.yaxis.set_minor_locator(NullLocator())
    part.grid(alpha=0.3)


def spread(ticks: list[int]) -> list[int]:
    """Without those that would be written over their neighbour."""
    kept = ticks[:1]
    for tick in ticks[1:]:
        if tick >= 1.5 * kept[-1]:
            kept.append(tick)
    return kept


def between(run: Run, folder: Path) -> Path | None:
    """From process to process: millions per second over the batch, with four fifths of the rounds around the median."""
    tests = {ring: f"test_one_way_over_the_batch[{ring}]" for ring in (131072, 2097152)}
    if not all(test in run.tests for test in tests.values()):
        return None
    figure, parts = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for part, (ring, test) in zip(parts, tests.items(), strict=True):
        found = run.tests[test]["samples"]
        batches = {int(name.split()[-1]): name for name in found if name.startswith("hvring")}
        lines = {"hvring": list(batches.values()), **{n: [n] * len(batches) for n in found if n in PEERS}}
        for line, names in lines.items():
            rates = [sorted(1e3 / each for each in found[name]) for name in names]
            style = looks(line, 0)
            part.plot(list(batches), [median(each) for each in rates], marker=".", **style)
            cut = len(rates[0]) // 10
            bounds = [[each[cut] for each in rates], [each[-1 - cut] for each in rates]]
            part.fill_between(list(batches), *bounds, color=style["color"], alpha=0.12, linewidth=0)
        part.set_xscale("log", base=2)
        title = f"64 bytes from process to process, ring of {number(ring)}B"
        part.set(xlabel="packets in a batch of hvring's", ylabel="million packets per second", title=title)
        part.xaxis.set_major_formatter(FuncFormatter(number))
        logarithmic(part)
    figure.legend(*parts[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return save(figure, folder, "two-processes")


def ways(run: Run, folder: Path) -> Path | None:
    """Bars: a pair of packets from Python by different bindings."""
    found = run.tests.get("test_other_ways_from_python[64]")
    if found is None:
        return None
    medians = {name: median(samples) for name, samples in found["samples"].items()}
    figure, part = plt.subplots(figsize=(8, 0.4 * len(medians) + 1), layout="constrained")
    for candidate, value in sorted(medians.items(), key=lambda pair: -pair[1]):
        style = looks(candidate, 0)
        color = style["color"] if candidate == "hvring" or candidate in PEERS else "0.7"
        bar = part.barh(style["label"] if candidate in PEERS else candidate, value, color=color)
        part.bar_label(bar, [f"{value:.0f} ns"], padding=3)
    part.set(xlabel="ns for one packet of 64 bytes, in and out", xlim=(0, 1.15 * max(medians.values())))
    return save(figure, folder, "ways")


def latency(run: Run, folder: Path) -> Path | None:
    """Round trips: ns at the percentiles."""
    tests = [test for test in ("test_spinning", "test_sleeping") if "percentiles" in run.tests.get(test, {})]
    if not tests:
        return None
    figure, parts = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for part, test in zip(parts, tests, strict=False):
        ours = 0
        for candidate, found in run.tests[test]["percentiles"].items():
            style = looks(candidate, ours)
            ours += "linewidth" in style
            part.plot(
                ["best" if p == "0" else f"{int(p) / 100:g}" for p in found],
                [each / 1e3 for each in found.values()],
                marker=".",
                **style,
            )
        part.set(
            xlabel="percentile",
            ylabel="µs there and back, 64 bytes",
            title=test.removeprefix("test_"),
        )
        logarithmic(part)
        part.legend(fontsize=8)
    return save(figure, folder, "latency")


def growth(run: Run, folder: Path) -> Path | None:
    """Whole programs: data exchange over the records of a pool, and a packet over the channels of one loop."""
    records = (10, 100, 1000)
    channels = run.tests.get("test_many_channels")
    if channels is None or any(f"test_one_request[{n}-set]" not in run.tests for n in records):
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for verb, line in (("get", ":"), ("set", "-"), ("enumerate", "--")):
        found = [run.tests[f"test_one_request[{n}-{verb}]"]["samples"] for n in records]
        for candidate, color in (("hvring run", OURS[0]), ("hv_kvp_daemon", "tab:blue")):
            if all(candidate in each for each in found):
                medians = [median(each[candidate]) for each in found]
                label = f"{candidate}, {verb.upper()}"
                left.plot(records, medians, marker=".", color=color, linestyle=line, label=label)
    left.set(xlabel="records in the pool", ylabel="µs per request", title="data exchange, end to end")
    for busy, color in (("one busy", OURS[0]), ("all busy", OURS[1])):
        names = [name for name in channels["samples"] if name.endswith(busy)]
        counts = [int(name.split()[0]) for name in names]
        right.plot(
            counts, [median(channels["samples"][n]) for n in names], marker=".", color=color, label=busy
        )
    right.set(xlabel="channels on one event loop", ylabel="µs per packet", title="agent and virtual host")
    for part in (left, right):
        part.set_xscale("log")
        part.xaxis.set_minor_locator(NullLocator())
        part.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        logarithmic(part)
        part.legend(fontsize=8)
    right.set_ylim(bottom=1)
    return save(figure, folder, "growth")


ASKED = (  # label, test, the daemon
    ("file to the disk", "test_copy[disk]", "hv_fcopy_daemon"),
    ("file to a tmpfs", "test_copy[memory]", "hv_fcopy_daemon"),
    *(
        (f"{what.upper()}, {n:,} records", f"test_one_request[{n}-{what}]", "hv_kvp_daemon")
        for n in (10, 1000)
        for what in ("get", "enumerate", "set")
    ),
)
ECHOES = {"echo in C that looks": "0.2", "echo in C": "0.5", "echo in asyncio": "tab:brown"}


def services(run: Run, folder: Path) -> Path | None:
    """Whole programs under the host in C: time in units of the daemon's, and answers beside a load."""
    asked = [
        (label, run.tests[test]["samples"], daemon)
        for label, test, daemon in ASKED
        if daemon in run.tests.get(test, {}).get("samples", ())
    ]
    if not asked:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained", width_ratios=(3, 2))
    labels = [label for label, _, _ in asked]
    left.axvline(1, color="tab:blue", linestyle="--", label="the daemon of Linux, in C")
    for candidate, color in {"hvring run": OURS[0], **ECHOES}.items():
        ratios = [
            [ours / theirs for ours, theirs in zip(found[candidate], found[daemon], strict=True)]
            for _, found, daemon in asked
        ]
        middles = [median(each) for each in ratios]
        ours = candidate == "hvring run"
        label = candidate if ours else f"limit: {candidate}"
        left.plot(
            middles, labels, "o" if ours else "|", color=color, markersize=7 if ours else 12, label=label
        )
        if ours:
            cut = len(ratios[0]) // 10
            spans = [sorted(each) for each in ratios]
            left.hlines(labels, [s[cut] for s in spans], [s[-1 - cut] for s in spans], color=color, alpha=0.4)
    wanted = {(row.test, row.peer): row.target for row in ROWS if row.candidate == "hvring run"}
    bounds = [wanted[test, daemon] for label, test, daemon in ASKED if label in labels]
    left.plot(bounds, labels, "<", color="0.5", markersize=5, zorder=1, label="target")
    left.set_xscale("log")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter(FuncFormatter(number))
    left.xaxis.set_minor_locator(NullLocator())
    left.invert_yaxis()
    left.grid(alpha=0.3)
    left.set(xlabel="time, in units of the daemon's", title="a host in C that answers at once")
    beside = {
        "heartbeat, nothing else": ("test_a_beat_beside_a_copy_and_a_flood", "hvring run, nothing else"),
        "beside a copy and a KVP flood": ("test_a_beat_beside_a_copy_and_a_flood", "hvring run"),
        "the same, by an echo in asyncio": ("test_a_beat_beside_a_copy_and_a_flood", "echo in asyncio"),
        **{
            f"{name} beside a copy": ("test_others_beside_a_copy", name)
            for name in ("heartbeat", "kvp", "vss")
        },
    }
    shown = {
        label: sorted(run.tests[test]["samples"][candidate])
        for label, (test, candidate) in beside.items()
        if test in run.tests
    }
    for label, found in shown.items():
        color = "tab:brown" if "echo" in label else OURS[0]
        right.plot(median(found), label, "o", color=color)
        right.hlines([label], found[0], found[-1], color=color, alpha=0.4)
    if shown:
        right.axvline(2, color="0.5", linestyle=":", label="target")
        right.set_xscale("log")
        right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.xaxis.set_major_formatter(FuncFormatter(number))
        right.xaxis.set_minor_locator(NullLocator())
        right.invert_yaxis()
        right.grid(alpha=0.3)
        right.set(xlabel="ms, 99th percentile", title="answers beside a load")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return save(figure, folder, "services")
