# SPDX-License-Identifier: Apache-2.0
"""What does the agent make of a backup's messages, the host's list of 260 disks included?

Under the host of host.c and rehearsed: nothing is frozen, what is timed is everything else. The in-tree daemon cannot
rehearse; "echo in C" sends the same bytes back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents import RunningAgent
from blocking_host import Way, over_rings
from measure import Run, in_turns
from processors import HOST, favoured

from hvring.ic.frame import Frame, MessageType
from hvring.ic.vss import MAX_LUNS, BusType, Lun, VssFreeze, VssOperation, VssRequest

HERE = Path(__file__).parent
DISKS = tuple(Lun(BusType.SCSI, bytes(15) + b"\1", 0, n // 64, n % 64) for n in range(MAX_LUNS))
BACKUP = {
    "HOT_BACKUP": VssRequest(VssOperation.HOT_BACKUP).encode(),
    "GET_DM_INFO": VssRequest(VssOperation.GET_DM_INFO).encode(),
    "FREEZE of 260 disks": VssFreeze(luns=DISKS).encode(),
    "THAW": VssRequest(VssOperation.THAW).encode(),
    "BACKUP_COMPLETE": VssRequest(VssOperation.BACKUP_COMPLETE).encode(),
}


def test_backup(benchmark: Any, tmp_path: Path) -> None:
    messages = [Frame(MessageType.VSS, body).encode() for body in BACKUP.values()]
    backups = 20 if benchmark.enabled else 1

    def backup(way: Way) -> Run:
        """ms for a whole one."""

        def run() -> float:
            with favoured(HOST):
                return sum(way.converse(messages, backups * len(messages))) / backups / 1e6

        return run

    for name in ("agent", "echo"):
        (tmp_path / name).mkdir()
    echo = HERE / "echo_c.py"
    with (
        RunningAgent(tmp_path / "agent", "vss", as_guest=True) as agent,
        RunningAgent(tmp_path / "echo", "vss", program=echo, as_guest=True) as limit,
    ):
        ours, theirs = over_rings(agent, "vss"), over_rings(limit, "vss")
        candidates = {"hvring run, rehearsed": backup(ours), "echo in C": backup(theirs)}
        in_turns(benchmark, candidates, unit="ms/backup", rounds=9)
