# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks measure: candidates in turns, so that a slow moment of the machine meets them all."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

CONTROL = 4096
Run = Callable[[], float]


def in_turns(
    benchmark: Any, candidates: dict[str, Run], *, unit: str = "ns/packet", rounds: int = 15, **facts: object
) -> dict[str, list[float]]:
    """Every candidate returns one measurement; a round runs each once.  Samples and facts go into the results.

    The first candidate is the one that pytest-benchmark itself times, once a round.  With --benchmark-disable one round
    is run, to see that it works.
    """
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    first, *others = candidates

    def take(name: str) -> None:
        samples[name].append(candidates[name]())

    def the_others() -> tuple[tuple[()], dict[str, Any]]:
        for name in others:
            take(name)
        return (), {}

    benchmark.pedantic(lambda: take(first), setup=the_others, rounds=rounds)
    benchmark.extra_info.update(unit=unit, samples=samples, **facts)
    return samples


def timed(step: Callable[[], object], count: int, per: int = 1) -> Run:
    """Nanoseconds of one `step` (of `per` packets), over `count` of them; the loop's few ns included."""

    def run() -> float:
        start = time.perf_counter_ns()
        for _ in repeat(None, count):
            step()
        return (time.perf_counter_ns() - start) / (count * per)

    return run


def pairs(
    send: Callable[[Any], object], receive: Callable[..., object], payload: Any, *into: object, count: int = 0
) -> Run:
    """ns of `send(payload)` and `receive(*into)`, bound methods, in a loop without a function around them."""
    count = count or (20_000 if len(payload) <= 1024 else 5_000)

    def run() -> float:
        put, get, data = send, receive, payload
        start = time.perf_counter_ns()
        if into:
            (target,) = into
            for _ in repeat(None, count):
                put(data)
                get(target)
        else:
            for _ in repeat(None, count):
                put(data)
                get()
        return (time.perf_counter_ns() - start) / count

    return run


def shared_ring(data: int = 131072) -> mmap.mmap:
    """Page-aligned memory for one ring, shared with children."""
    return mmap.mmap(-1, CONTROL + data)


def two_processes(child: Callable[[], object], parent: Callable[[], object]) -> float:
    """Run both at the same moment, each on a processor of its own; nanoseconds until the parent is done."""
    gate = mmap.mmap(-1, 4096)
    processors = sorted(os.sched_getaffinity(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside NumPy's sleeping threads
        pid = os.fork()
    if pid == 0:
        try:
            os.sched_setaffinity(0, processors[:1])
            gate[0] = 1
            while not gate[1]:
                pass
            child()
            os._exit(0)
        finally:
            os._exit(1)
    try:
        os.sched_setaffinity(0, processors[-1:])
        while not gate[0]:
            pass
        gate[1] = 1
        start = time.perf_counter_ns()
        parent()
        took = time.perf_counter_ns() - start
    finally:
        os.sched_setaffinity(0, processors)
        _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"the other process ended with status {status}")
    return float(took)


def cache() -> Path:
    """Where what is built for the benchmarks is kept: $HVRING_BENCH_CACHE or ~/.cache/hvring-bench."""
    path = Path(os.environ.get("HVRING_BENCH_CACHE") or Path.home() / ".cache" / "hvring-bench")
    path.mkdir(parents=True, exist_ok=True)
    return path


def machine() -> dict[str, object]:
    """What a reader must know about the machine to place the numbers."""
    info = Path("/proc/cpuinfo").read_text()
    model = next(
        (line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?"
    )
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=False).stdout
    return {
        "processor": model,
        "processors": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "compiler": compiler.splitlines()[0] if compiler else "?",
        "python": platform.python_version(),
        "virtual": "hypervisor" in info,
    }
