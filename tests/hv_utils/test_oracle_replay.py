# SPDX-License-Identifier: Apache-2.0
"""The recorded requests through a model of hv_utils: the answers of Linux, whose record this way is, or an entry.

What was recorded, and from which guest: docs/differences.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from replaying import RECORDINGS, oracle, replay

table = oracle.table
REFUSED = ("delta".encode("utf-16-le"), "exp".encode("utf-16-le"))
ENTRIES = (*table.DIFFERENCES, *table.DIFFERENCES_UTILS)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_the_answers_over_hv_utils_are_those_of_linux_or_explained(recording: str, tmp_path: Path) -> None:
    unexplained = []
    for n, (row, ours) in enumerate(replay(recording, tmp_path)):
        left = oracle.differing(row.answer, ours)
        for entry in ENTRIES:
            if entry.concerns(recording, row.what):
                left -= entry.explains(row.answer, ours)
        if left:
            unexplained.append((n, row.what, sorted(left)[:40]))
    assert unexplained == []


def test_every_entry_for_hv_utils_is_needed(tmp_path: Path) -> None:
    used: set[int] = set()
    for recording in RECORDINGS:
        directory = tmp_path / recording
        directory.mkdir()
        for row, ours in replay(recording, directory):
            wrong = oracle.differing(row.answer, ours)
            used.update(
                i
                for i, entry in enumerate(table.DIFFERENCES_UTILS)
                if wrong and entry.concerns(recording, row.what) and wrong & entry.explains(row.answer, ours)
            )
    assert [d for i, d in enumerate(table.DIFFERENCES_UTILS) if i not in used] == []


def test_the_share_of_equal_answers_is_what_it_was(tmp_path: Path) -> None:
    """Entries that explain too much would not be noticed otherwise."""
    equal = {}
    for recording in RECORDINGS:
        directory = tmp_path / recording
        directory.mkdir()
        answers = list(replay(recording, directory))
        equal[recording] = (sum(row.answer == ours for row, ours in answers), len(answers))
    assert equal == {"kvp": (55, 71), "vss": (35, 35), "fcopy-hv_utils-6.1": (30, 37)}


def test_the_records_behind_the_refused_ones_are_linux_own(tmp_path: Path) -> None:
    """An entry names a record, but not the index at which it has to be."""
    listings: list[list[tuple[bytes | None, bytes | None]]] = [[]]
    for row, ours in replay("kvp", tmp_path):
        if row.what.startswith("ENUMERATE pool 0 "):
            listings[-1].append((row.answer, ours))
        elif listings[-1]:
            listings.append([])
    listings = [rows for rows in listings if rows]
    assert [len(rows) for rows in listings] == [10, 9]
    for rows in listings:
        records = [answer[36:] for answer, _ in rows if answer is not None and not any(answer[20:24])]
        kept = [r for r in records if not r[12:].startswith(REFUSED)]
        ours = [mine[36:] for _, mine in rows if mine is not None and not any(mine[20:24])]
        assert (ours, len(records) - len(ours)) == (kept, 2)


def test_the_documentation_shows_the_table_for_hv_utils() -> None:
    assert table.render(table.DIFFERENCES_UTILS) in oracle.DOCS.read_text(encoding="utf-8")
