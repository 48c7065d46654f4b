# SPDX-License-Identifier: Apache-2.0
"""Playing recorded requests to whoever answers in the guest, and holding the answers against Linux's."""

from __future__ import annotations

import gzip
import json
import sys
import time
from fnmatch import fnmatchcase

sys.path.insert(0, "/lab/oracle")
import differences

_SILENCE = 0.5  # seconds; an answer that comes later is noticed too
# hvring does not wait for the resolver: until it has answered, the name is the short one.
_FOUND_OUT_LATER = {"ENUMERATE pool 2 index 0": "l2guest.example.test".encode("utf-16-le")}
_LEFT_OUT = {
    "*no daemon*": "about the daemon's absence, which hvring does not have",
    "*daemon dead": "the same",
    "SHUT DOWN*": "ends the guest; the scenario services does it",
}


def linux_answers(lab, services):
    """hv_utils with the daemons of hyperv-daemons, in a guest that is made ready for it: {service: its rows}."""
    lab.load("hv_utils", "brd", "dummy")
    lab.sh("dd if=/srv/ext4.img of=/dev/ram0 bs=64k 2>/dev/null && mount -t ext4 /dev/ram0 /mnt")
    lab.sh("ip link set dummy0 address 00:15:5d:01:02:03 && ip addr add 192.0.2.7/24 dev dummy0")
    lab.sh("ip link set dummy0 up && ip route add default via 192.0.2.1")
    lab.sh("mkdir -p /var/lib/hyperv; for d in kvp vss; do hv_${d}_daemon -n > /tmp/$d.log 2>&1 & done")
    answers = {}
    for service in services:
        if lab.check(lab.devices[service].wait_open(), f"hv_utils opens {service}"):
            answers[service] = replay(lab, service, service)
    changed = {
        service: sum(answer != row["answer"] for row, answer in answered)
        for service, answered in answers.items()
    }
    lab.say("answers that are not those on record, for the kernel's release and such:", changed)
    return answers


def end_linux_answers(lab):
    """hvring begins with new pool files, and has a full file system to fail at."""
    lab.sh("killall hv_kvp_daemon hv_vss_daemon; rm -rf /var/lib/hyperv; mkdir /tmp/small")
    lab.sh("mount -t tmpfs -o size=8k t /tmp/small")


def compare(lab, linux, hvring, entries):
    """Every answer is Linux's or differs as ``entries`` say; the numbers of those that were needed.

    Where Linux did not answer in this guest, its answers are those on record.
    """
    used = set()
    rows = different = 0
    for recording, answered in hvring.items():
        theirs_here = linux.get(recording) or [(row, row["answer"]) for row, _ in answered]
        for (row, theirs), (_, ours) in zip(theirs_here, answered, strict=True):
            left = _differing(theirs, ours)
            rows, different = rows + 1, different + bool(left)
            for number, entry in enumerate(entries):
                if left and entry.concerns(recording, row["what"]) and left & entry.explains(theirs, ours):
                    left -= entry.explains(theirs, ours)
                    used.add(number)
            if left:
                lab.say("linux ", theirs and theirs.hex())
                lab.say("hvring", ours and ours.hex())
                lab.check(False, f"{recording}: {row['what']}: unexplained at {sorted(left)[:40]}")
    lab.say(f"{rows} requests, {different} answers differ, {len(used)} entries explain them")
    return used


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


def replay(lab, service, recording):
    """Every row with the answer that came; None if none did."""
    answered = []
    for row in _rows(recording):
        answer = _ask(lab, lab.devices[service], recording, row)
        found = _FOUND_OUT_LATER.get(row["what"], b"")
        since = time.monotonic()
        while answer and found not in answer and time.monotonic() - since < 10:
            time.sleep(0.2)
            answer = _ask(lab, lab.devices[service], recording, row)
        answered.append((row, answer))
    return answered


def _ask(lab, device, recording, row):
    wanted = device.send(
        row["request"], packet_type=row["packet_type"], completion="completion" in row["what"]
    )
    end = time.monotonic() + _timeout(recording, row)
    while packet := device.receive(end - time.monotonic()):
        if packet.transaction_id == wanted:
            return packet.payload
        lab.check(False, f"a late answer, of {len(packet.payload)} bytes, before {row['what']}")
    device.drop_waiting()  # what the guest does not take would stay in the way
    return None


def _timeout(recording, row):
    """Seconds to wait for an answer."""
    if any(not d.edits and d.concerns(recording, row["what"]) for d in differences.DIFFERENCES):
        return 4 * _SILENCE  # one of the two does not answer
    return _SILENCE if row["answer"] is None else 15


def _differing(linux, hvring):
    """Offsets of unequal bytes; -1 stands for a missing answer or one of another length."""
    if linux is None or hvring is None or len(linux) != len(hvring):
        return set() if linux == hvring else {-1}
    return {i for i, (a, b) in enumerate(zip(linux, hvring, strict=True)) if a != b}
