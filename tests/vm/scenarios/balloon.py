# SPDX-License-Identifier: Apache-2.0
"""QEMU's own VMBus device: a long echo through it, then examples/dynamic_memory.py as its driver."""

from __future__ import annotations

import json
import re

GUEST = {"services": [], "balloon": True}
SECONDS = 120
_CLASS = "525074dc-8985-46e2-8057-a307dc18a502"
_EXCHANGES, _AT_MOST = 100_000, 60  # seconds, on a slow machine
_RING = 0x200000 - 4096
_PAGE = 4096


def the_device_is_bound(lab):
    if lab.kernel.startswith("6.1."):
        lab.skip("uio_hv_generic of this kernel refuses channels without monitor bit")
    lab.load("uio", "uio_hv_generic")
    lab.sh(f"python3 -m hvring bind --force {_CLASS}", 60)
    lab.kept["bound"] = True


def nothing_is_lost_in_a_long_echo(lab):
    _need_bound(lab)
    done = json.loads(lab.sh(f"python3 /t/balloon_guest.py {_EXCHANGES} {_AT_MOST}", _AT_MOST + 30))
    sent, seconds = done["sent"], done["seconds"]
    lab.check(done["received"] == sent and not done["wrong"], f"{sent} exchanges, in order: {done['wrong']}")
    lab.check(sent == _EXCHANGES or seconds >= _AT_MOST, f"{sent / seconds:.0f} a second: {done}")
    wraps = {way: done[f"bytes_{way}"] // _RING for way in ("sent", "received")}
    lab.check(min(wraps.values()) > 0 or sent < _EXCHANGES, f"the rings wrap: {wraps}")
    lab.check(done["wakeups"] > 0, "and the guest slept for its answers")


def the_example_reports_what_qemu_sees(lab):
    _need_bound(lab)
    lab.sh("python3 /examples/dynamic_memory.py --interval 2 > /tmp/example.log 2>&1 &")
    event = lab.qmp.event("HV_BALLOON_STATUS_REPORT", 30)
    seen = [lab.qmp("query-hv-balloon-status-report")] if event else []
    if lab.qmp.event("HV_BALLOON_STATUS_REPORT", 30):
        seen.append(lab.qmp("query-hv-balloon-status-report"))
    log = lab.sh("cat /tmp/example.log")
    lab.check("version 2.0" in log, "a version is agreed on")
    said = [int(n) * _PAGE for n in re.findall(r"reported (\d+) available", log)]
    lab.check(len(seen) == 2, "reports come, and go on coming")
    for report in seen:
        lab.check(report["available"] in said, f"QEMU has what the guest said: {report}, of {said}")


def _need_bound(lab):
    if not lab.kept.get("bound"):
        lab.skip("the device is not bound")
