# SPDX-License-Identifier: Apache-2.0
"""The recorded requests once more, live: to Linux's driver and daemons, then to hvring in the same guest.

For file copy the answers of Linux are those on record: its kernels of today have no responder of their own.
"""

from __future__ import annotations

import sys

import _replay

sys.path.insert(0, "/lab/oracle")
import differences

SECONDS = 200
_BY_HV_UTILS = ("heartbeat", "timesync", "vss", "kvp", "shutdown")
_ON_RECORD = ("fcopy-hv_utils-6.1", "fcopy-uio-daemon-6.12")


def linux_answers(lab):
    """hv_utils with the daemons of hyperv-daemons."""
    lab.load("uio", "uio_hv_generic")
    lab.kept["linux"] = _replay.linux_answers(lab, _BY_HV_UTILS)


def hvring_answers(lab):
    """The same over uio, in the same guest; the pool files begin anew."""
    if lab.kernel.startswith("6.1."):
        lab.skip("uio_hv_generic of this kernel refuses channels without monitor bit")
    _replay.end_linux_answers(lab)
    lab.sh("python3 -m hvring bind --force shutdown timesync heartbeat kvp vss fcopy", 90)
    for device in lab.devices.values():
        device.wait_closed()  # what hv_utils had open
    others = "timesync heartbeat kvp vss fcopy"
    lab.sh(f"python3 -m hvring run {others} --set-clock --allow /tmp > /tmp/run.log 2>&1 &")
    lab.sh("python3 -m hvring run shutdown --rehearse > /tmp/run-shutdown.log 2>&1 &")  # it can hibernate
    lab.kept["hvring"] = {}
    for recording in (*_BY_HV_UTILS, *_ON_RECORD):
        service = recording.partition("-")[0]
        if lab.check(lab.devices[service].wait_open(60), f"hvring opens {service}"):
            lab.sh("rm -rf /tmp/fc")
            lab.kept["hvring"][recording] = _replay.replay(lab, service, recording)
    lab.sh("cat /tmp/run.log /tmp/run-shutdown.log")


def they_differ_as_the_table_says(lab):
    if "hvring" not in lab.kept:
        lab.skip("there are no answers of hvring")
    used = _replay.compare(lab, lab.kept["linux"], lab.kept["hvring"], differences.DIFFERENCES)
    unseen = [entry.why for number, entry in enumerate(differences.DIFFERENCES) if number not in used]
    lab.check(not unseen, f"every entry of the table is seen: {unseen}")
