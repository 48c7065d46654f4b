# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import os
import shutil
import sys
from types import SimpleNamespace

import pytest

from hvring.cli import layout, parser


@pytest.mark.parametrize("said", ["", "0", "-3", "wide", "1", "40", "200"])
def test_columns_are_those_of_shutil(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("COLUMNS", said)
    assert layout.columns() == shutil.get_terminal_size().columns


@pytest.mark.parametrize("there", [True, False])
def test_without_columns_the_terminal_is_asked(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "__stdout__", SimpleNamespace(fileno=lambda: 1) if there else None)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((123, 45)))
    assert layout.columns() == shutil.get_terminal_size().columns == (123 if there else 80)


def test_a_terminal_without_a_width_has_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "__stdout__", SimpleNamespace(fileno=lambda: 1))
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((0, 0)))
    assert layout.columns() == 80


@pytest.mark.parametrize("width", [30, 100])
def test_help_is_laid_out_as_argparse_does_it(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    ours = parser("host").format_help()
    usual = parser("host")
    usual.formatter_class = argparse.HelpFormatter
    assert ours == usual.format_help()
    assert max(map(len, ours.splitlines())) <= width
