# SPDX-License-Identifier: Apache-2.0
"""The results of all runs as a table: a row for each check, a column for each kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One check on one kernel; ``status`` is ok, FAILED or skipped; ``notes`` say why it is not ok."""

    kernel: str
    scenario: str
    check: str
    status: str
    seconds: float
    notes: Sequence[str] = ()


def render(rows: Sequence[Row]) -> str:
    """The table, and below it the notes of what did not end well."""
    kernels = list(dict.fromkeys(row.kernel for row in rows))
    cells = {(row.scenario, row.check, row.kernel): f"{row.status} {row.seconds:.1f} s" for row in rows}
    lines = [["scenario", "check", *kernels]]
    for scenario, check in dict.fromkeys((row.scenario, row.check) for row in rows):
        lines.append([scenario, check, *(cells.get((scenario, check, kernel), "-") for kernel in kernels)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    for row in rows:
        text += [f"{row.status}: {row.kernel}, {row.scenario} / {row.check}: {note}" for note in row.notes]
    return "\n".join(text)
