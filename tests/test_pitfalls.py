# SPDX-License-Identifier: Apache-2.0
"""The table of pitfalls names each of them, and tests that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")


def rows() -> Iterator[tuple[int, str, str]]:
    """Number, where it is handled, test."""
    for line in TABLE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].isdecimal():
            number, _, where, test = cells
            yield int(number), where, test


def test_every_pitfall_of_the_protocol_has_its_row() -> None:
    chapter = PROTOCOL[PROTOCOL.index("\n## 6.") : PROTOCOL.index("\n## 7.")]
    known = [int(number) for number in re.findall(r"^\| (\d+) \|", chapter, re.MULTILINE)]
    assert [number for number, _, _ in rows()] == known == list(range(1, len(known) + 1))


def test_every_test_that_is_named_exists_and_is_missing_only_where_nothing_applies() -> None:
    for number, where, test in rows():
        if test == "-":
            assert "does not apply" in where, number
            continue
        path, _, name = test.strip("`").partition("::")
        assert re.search(
            rf"^(async )?def {name}\(", (ROOT / "tests" / path).read_text(encoding="utf-8"), re.MULTILINE
        )


def calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_nothing_is_run_by_a_shell() -> None:
    for path in sorted((ROOT / "hvring").rglob("*.py")):
        for call in calls(path):
            name = ast.unparse(call.func)
            assert name not in (
                "os.system",
                "os.popen",
                "subprocess.getoutput",
                "asyncio.create_subprocess_shell",
            ), path
            assert not [k for k in call.keywords if k.arg == "shell"], path
