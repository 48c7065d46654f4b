# SPDX-License-Identifier: Apache-2.0
"""The demo's live table on a terminal, plain lines elsewhere, and the summary at the end."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from types import TracebackType
from typing import Any, Final

from hvring.cli.demo.scenario import Scenario
from hvring.events import printable
from hvring.host import VirtualHost

_REFRESH: Final = 0.2  # seconds
_BAR: Final = 40


class Screen:
    """While it is entered, shows how ``scenario`` goes on."""

    def __init__(self, host: VirtualHost, scenario: Scenario, *, quiet: bool) -> None:
        self._host = host
        self._scenario = scenario
        self._quiet = quiet
        self._live = sys.stdout.isatty() and not quiet
        self._lines = 0
        self._said: tuple[str, int] = ("", 0)
        self._began = time.perf_counter()
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Screen:
        if not self._quiet:
            self._task = asyncio.create_task(self._show())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
        self._erase()

    async def _show(self) -> None:
        while True:
            if self._live:
                self._draw()
            else:
                self._say()
            await asyncio.sleep(_REFRESH)

    def _draw(self) -> None:
        width = shutil.get_terminal_size().columns
        lines = [f"{time.perf_counter() - self._began:5.1f} s  {self._scenario.step}", self._bar(), ""]
        lines += [_HEAD]
        status = self._host.status()["services"]
        for name, one in status.items():
            state = f"{one['state']} {one['version'] or ''}"
            lines.append(_row(name, state, one))
        self._erase()
        print("\n".join(line[: width - 1] for line in lines), flush=True)
        self._lines = len(lines)

    def _bar(self) -> str:
        if self._scenario.progress is None:
            return ""
        done, total = self._scenario.progress
        filled = done * _BAR // max(total, 1)
        return f"[{'#' * filled}{'.' * (_BAR - filled)}] {done * 100 // max(total, 1):3d} %"

    def _say(self) -> None:
        """One line per step and per tenth of its work."""
        tenth = 0
        if self._scenario.progress is not None:
            tenth = self._scenario.progress[0] * 10 // max(self._scenario.progress[1], 1)
        now = (self._scenario.step, tenth)
        if now != self._said:
            self._said = now
            print(f"{time.perf_counter() - self._began:5.1f} s  {now[0]} {self._bar()}".rstrip(), flush=True)

    def _erase(self) -> None:
        if self._lines:
            print(f"\x1b[{self._lines}A\x1b[J", end="", flush=True)
            self._lines = 0


_HEAD: Final = f"{'service':<10} {'state':<12} {'exchanges':>9} {'bytes/s':>12} {'median':>9} {'p99':>9}"


def _row(name: str, state: str, figures: dict[str, Any]) -> str:
    """``bytes/s`` counts requests and answers, over the time in which answers were waited for."""
    rate, median, p99 = (figures[key] for key in ("bytes_per_second", "median_seconds", "p99_seconds"))
    speed = "-" if rate is None else _bytes(rate)
    return f"{name:<10} {state:<12} {figures['exchanges']:>9} {speed:>12} {_time(median):>9} {_time(p99):>9}"


def summary(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = []
    for check in result["checks"]:
        detail = f"  ({printable(check['detail'])})" if check["detail"] else ""
        lines.append(f"{'ok  ' if check['ok'] else 'FAIL'} {check['service']:<10} {check['what']}{detail}")
    lines += ["", _HEAD]
    for name, one in result["services"].items():
        lines.append(_row(name, one["version"] or "", one))
    rate = result.get("copy_bytes_per_second")
    copied = f", the file at {_bytes(rate)}/s" if rate else ""
    verdict = "everything was right" if result["ok"] else "SOMETHING WAS WRONG: see FAIL above"
    lines += ["", f"{verdict}; {result['seconds']:.1f} s{copied}; freeze, power and clock were rehearsed"]
    return "\n".join(lines)


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e6:.0f} us" if seconds < 0.01 else f"{seconds * 1e3:.1f} ms"
