# SPDX-License-Identifier: Apache-2.0
"""Hooks of every kind for rounds of chaos, and whether each that has started had its end."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Final

#: The environment says where a round's hooks write down what they are told: never on what is frozen.
LOG: Final = "CHAOS_LOG"

_BEGIN = """#!/bin/sh
say() { echo "$HVRING_BACKUP_ID $HVRING_HOOK $1" >>"$CHAOS_LOG"; }
say "$1"
"""
_WAITS = 'read -r word; say "${word:-eof}"'
#: By kind: the style of its directory, and what its programs do, by name.
_KINDS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "plain": ("native", {"10-plain": "", "20-plain": ""}),
    "held": ("native", {"30-held": f"[ $1 != freeze ] || {{ echo held; {_WAITS}; }}"}),
    "qemu-ga": ("qemu-ga", {"40-qemu.sh": ""}),
    "open-vm-tools": ("open-vm-tools", {"50-vmware": ""}),
    "fails": ("native", {"60-fails": "[ $1 != freeze ] || { echo no >&2; exit 1; }"}),
    "dies": ("native", {"70-dies": "[ $1 != freeze ] || { echo held; sleep 0.05; exit 7; }"}),
    "hangs": ("native", {"80-hangs": "[ $1 != prepare ] || exec sleep 1000"}),
}
_ENDS: Final = ("thaw", "abort", "freezeFail", "eof")


def write(folder: Path) -> dict[str, tuple[str, str]]:
    """All kinds, each with the path and the style of its directory."""
    made = {}
    for kind, (style, programs) in _KINDS.items():
        directory = folder / kind
        directory.mkdir(parents=True, mode=0o755)
        for name, body in programs.items():
            (directory / name).write_text(_BEGIN + body + "\n")
            (directory / name).chmod(0o755)
        made[kind] = str(directory), style
    return made


def choose(chance: random.Random) -> list[str]:
    """The kinds of a round, if it has any, in the order of freezing."""
    if chance.random() < 0.6:
        return []
    kinds = chance.sample(("plain", "held", "qemu-ga", "open-vm-tools"), chance.randint(1, 3))
    for kind, share in (("fails", 0.1), ("dies", 0.1), ("hangs", 0.02)):
        if chance.random() < share:
            kinds.insert(chance.randint(0, len(kinds)), kind)
    return kinds


def without_one_end(log: Path) -> list[str]:
    """Who has started and has no end, and who has more than one."""
    words: dict[str, list[str]] = defaultdict(list)
    for line in log.read_text().splitlines() if log.exists() else ():
        who, _, word = line.rpartition(" ")
        words[who].append(word)
    faults = []
    for who, said in words.items():
        ends = sum(word in _ENDS for word in said)
        # One that was killed before it could write has an end and no beginning.  One that dies at the moment when it is
        # told its end has it, and does not write it down.
        if ends > 1 or (ends == 0 and not who.endswith("-dies")):
            faults.append(f"{who}: {' '.join(said)}")
    return faults
