# SPDX-License-Identifier: Apache-2.0
"""The recorded requests once more, live: to Linux's driver and daemons, then to hvring in the same guest.

For file copy the answers of Linux are those on record: its kernels of today have no responder of their own.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from fnmatch import fnmatchcase

sys.path.insert(0, "/lab/oracle")
import differences

SECONDS = 200
_BY_HV_UTILS = ("heartbeat", "timesync", "vss", "kvp", "shutdown")
_ON_RECORD = ("fcopy-hv_utils-6.1", "fcopy-uio-daemon-6.12")
_SILENCE = 0.5  # seconds; an answer that comes later is noticed too
_LEFT_OUT = {
    "*no daemon*": "about the daemon's absence, which hvring does not have",
    "*daemon dead": "the same",
    "SHUT DOWN*": "ends the guest; the scenario services does it",
}


def linux_answers(lab):
    """hv_utils with the daemons of hyperv-daemons."""
    lab.load("hv_utils", "uio", "uio_hv_generic", "brd", "dummy")
    lab.sh("dd if=/srv/ext4.img of=/dev/ram0 bs=64k 2>/dev/null && mount -t ext4 /dev/ram0 /mnt")
    lab.sh("ip link set dummy0 address 00:15:5d:01:02:03 && ip addr add 192.0.2.7/24 dev dummy0")
    lab.sh("ip link set dummy0 up && ip route add default via 192.0.2.1")
    lab.sh("mkdir -p /var/lib/hyperv; for d in kvp vss; do hv_${d}_daemon -n > /tmp/$d.log 2>&1 & done")
    lab.kept["linux"] = {}
    for service in _BY_HV_UTILS:
        if lab.check(lab.devices[service].wait_open(), f"hv_utils opens {service}"):
            lab.kept["linux"][service] = _replay(lab, service, service)
    changed = {
        service: sum(answer != row["answer"] for row, answer in answered)
        for service, answered in lab.kept["linux"].items()
    }
    lab.say("answers that are not those on record, for the kernel's release and such:", changed)


def hvring_answers(lab):
    """The same over uio, in the same guest; the pool files begin anew."""
    if lab.kernel.startswith("6.1."):
        lab.skip("uio_hv_generic of this kernel refuses channels without monitor bit")
    lab.sh("killall hv_kvp_daemon hv_vss_daemon; rm -rf /var/lib/hyperv; mkdir /tmp/small")
    lab.sh("mount -t tmpfs -o size=8k t /tmp/small")
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
            lab.kept["hvring"][recording] = _replay(lab, service, recording)
    lab.sh("cat /tmp/run.log /tmp/run-shutdown.log")


def they_differ_as_the_table_says(lab):
    if "hvring" not in lab.kept:
        lab.skip("there are no answers of hvring")
    used = set()
    rows = different = 0
    for recording, answered in lab.kept["hvring"].items():
        linux = lab.kept["linux"].get(recording) or [(row, row["answer"]) for row, _ in answered]
        for (row, theirs), (_, ours) in zip(linux, answered, strict=True):
            left = _differing(theirs, ours)
            rows, different = rows + 1, different + bool(left)
            for number, entry in enumerate(differences.DIFFERENCES):
                if left and entry.concerns(recording, row["what"]) and left & entry.explains(theirs, ours):
                    left -= entry.explains(theirs, ours)
                    used.add(number)
            if left:
                lab.say("linux ", theirs and theirs.hex())
                lab.say("hvring", ours and ours.hex())
                lab.check(False, f"{recording}: {row['what']}: unexplained at {sorted(left)[:40]}")
    lab.say(f"{rows} requests, {different} answers differ, {len(used)} entries explain them")
    unseen = [entry.why for number, entry in enumerate(differences.DIFFERENCES) if number not in used]
    lab.check(not unseen, f"every entry of the table is seen: {unseen}")


def _rows(recording):
    with gzip.open(f"/lab/oracle/data/{recording}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if not any(fnmatchcase(row["what"], pattern) for pattern in _LEFT_OUT):
                request = bytes.fromhex(row["request"])
                # whole words: else the guest gets what lay in the ring behind the request, and sends it back
                row["request"] = request + bytes(-len(request) % 8)
                row["answer"] = None if row["answer"] is None else bytes.fromhex(row["answer"])
                yield row


def _replay(lab, service, recording):
    """Every row with the answer that came; None if none did."""
    answered = []
    for row in _rows(recording):
        answered.append((row, _ask(lab, lab.devices[service], recording, row)))
    return answered


def _ask(lab, device, recording, row):
    wanted = device.send(
        row["request"], packet_type=row["packet_type"], completion="completion" in row["what"]
    )
    end = time.monotonic() + _patience(recording, row)
    while packet := device.receive(end - time.monotonic()):
        if packet.transaction_id == wanted:
            return packet.payload
        lab.check(False, f"a late answer, of {len(packet.payload)} bytes, before {row['what']}")
    device.drop_waiting()  # what the guest does not take would stay in the way
    return None


def _patience(recording, row):
    """Seconds to wait for an answer."""
    if any(not d.edits and d.concerns(recording, row["what"]) for d in differences.DIFFERENCES):
        return 4 * _SILENCE  # one of the two does not answer
    return _SILENCE if row["answer"] is None else 15


def _differing(linux, hvring):
    """Offsets of unequal bytes; -1 stands for a missing answer or one of another length."""
    if linux is None or hvring is None or len(linux) != len(hvring):
        return set() if linux == hvring else {-1}
    return {i for i, (a, b) in enumerate(zip(linux, hvring, strict=True)) if a != b}
