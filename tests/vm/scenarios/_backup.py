# SPDX-License-Identifier: Apache-2.0
"""A backup of /mnt during which a write must wait; for the scenarios in which hvring really freezes."""

from __future__ import annotations

import asyncio

_WRITER = "(echo frozen > /mnt/while-frozen; echo done > /tmp/written)"
_STATE = "cut -d ' ' -f 3 /proc/$(cat /tmp/writer)/stat 2> /dev/null"


def mount(lab):
    """A file system of its own at /mnt, which nothing else needs."""
    lab.load("brd")
    lab.sh("dd if=/srv/ext4.img of=/dev/ram0 bs=64k 2>/dev/null && mount -t ext4 /dev/ram0 /mnt")


def start_writer(lab):
    """Begin a write into /mnt; where it is and whether it is through, once it waits or after 10 s."""
    lab.sh(f"rm -f /tmp/written; {_WRITER} & echo $! > /tmp/writer")
    state = lab.sh(f"for i in $(seq 100); do {_STATE} | grep -q D && break; sleep 0.1; done; {_STATE}")
    return {"writer": state, "written": lab.try_sh("test -e /tmp/written")[0] == 0}


def wait_written(lab):
    """Until the write went through, 20 s at most."""
    lab.sh("for i in $(seq 200); do [ -e /tmp/written ] && break; sleep 0.1; done; cat /tmp/written")
    lab.check(lab.sh("cat /mnt/while-frozen") == "frozen", "the write goes through after the thaw")


def backup_blocks_a_writer(lab):
    """A write into the file system blocks from FREEZE to THAW and goes through after that."""
    seen = {}

    def frozen() -> None:
        seen.update(start_writer(lab))
        seen["read"] = lab.sh("cat /mnt/before")

    async def during() -> None:
        await asyncio.to_thread(frozen)

    lab.sh("echo quiet > /mnt/before")
    report = lab.host.do(lab.host.vss.backup(during))
    lab.check(seen == {"writer": "D", "written": False, "read": "quiet"}, f"while frozen: {seen}")
    wait_written(lab)
    lab.say(f"frozen for {report.frozen_seconds:.2f} s")
