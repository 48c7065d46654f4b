# SPDX-License-Identifier: Apache-2.0
"""Copies between a whole host and a whole agent that are interrupted in every way that there is, at any moment.

HVRING_COPY_ROUNDS: how many, HVRING_CHAOS_SEED: which ones.  After each, answer and disk agree.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root

PROGRAM = Path(__file__).with_name("copies_process.py")
ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("HVRING_COPY_ROUNDS", "40"))
SEED = os.environ.get("HVRING_CHAOS_SEED", "1")
BOUND = 150.0


def test_whatever_interrupts_a_copy_answer_and_disk_agree_and_nothing_is_left(
    namespace: Any, processes: contextlib.ExitStack
) -> None:
    settings = {
        "disk": namespace.mount_image("disk", size=64),
        "small": namespace.mount_tmpfs("small", "-o", "size=1m"),
        "plain": namespace.mount_tmpfs("plain", "-o", "size=64m"),
        "socket": str(namespace.folder / "host.sock"),
        "rounds": ROUNDS,
        "seed": SEED,
    }
    copies = subprocess.Popen(
        namespace.inside(sys.executable, str(PROGRAM), json.dumps(settings)),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(copies.pid, 9)
        copies.communicate()

    processes.callback(end)
    assert copies.stdout is not None
    outcomes: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    for number in range(ROUNDS):
        assert select.select([copies.stdout], [], [], BOUND)[0], f"round {number} does not end"
        seen = json.loads(copies.stdout.readline())
        assert seen["round"] == number
        assert not seen["problems"], json.dumps(seen)
        outcomes[seen["outcome"]] += 1
        kinds[f"{seen['kind']}: {seen['at']}"] += 1
    print(f"{ROUNDS} rounds; the host heard {dict(outcomes)}; interruptions: {dict(sorted(kinds.items()))}")
    assert outcomes["ok"] >= ROUNDS // 10  # a test of copies must copy,
    assert ROUNDS - outcomes["ok"] >= ROUNDS // 10  # and one of interruptions interrupt
