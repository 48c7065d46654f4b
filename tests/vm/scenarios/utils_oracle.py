# SPDX-License-Identifier: Apache-2.0
"""The recorded requests once more, live: to Linux's daemons behind hv_utils, then to hvring in their place."""

from __future__ import annotations

import sys

import _replay

sys.path.insert(0, "/lab/oracle")
import differences

SECONDS = 150
_WITH_DAEMONS = ("kvp", "vss")


def linux_answers(lab):
    """Where there is a daemon of today's package; file copy's answers are on record."""
    lab.kept["linux"] = _replay.linux_answers(lab, _WITH_DAEMONS)


def hvring_answers(lab):
    """Over the same devices, in the same guest; the pool files begin anew."""
    recordings = {"kvp": "kvp", "vss": "vss", "fcopy": "fcopy-hv_utils-6.1"}
    there = [name for name in recordings if lab.try_sh(f"test -e /dev/vmbus/hv_{name}")[0] == 0]
    lab.check({"kvp", "vss"} <= set(there), f"devices of hv_utils: {there}")
    _replay.end_linux_answers(lab)
    run = f"python3 -m hvring run {' '.join(there)} --via utils --allow /tmp --json"
    lab.sh(f"{run} > /tmp/run.log 2>&1 &")
    lab.kept["hvring"] = {}
    for name in there:
        lab.sh(f'await /tmp/run.log \'*"event": "opened", "service": "{name}"*\' 60', 90)
        lab.sh("rm -rf /tmp/fc")
        lab.check(lab.devices[name].wait_open(), f"hv_utils has the channel of {name} open")
        lab.kept["hvring"][recordings[name]] = _replay.replay(lab, name, recordings[name])
    lab.sh("cat /tmp/run.log")


def they_differ_as_the_table_says(lab):
    if "hvring" not in lab.kept:
        lab.skip("there are no answers of hvring")
    entries = (*differences.DIFFERENCES_UTILS, *differences.DIFFERENCES)
    used = _replay.compare(lab, lab.kept["linux"], lab.kept["hvring"], entries)
    unseen = [entry.why for number, entry in enumerate(differences.DIFFERENCES_UTILS) if number not in used]
    lab.check(not unseen, f"every entry of the table for hv_utils is seen: {unseen}")
