# SPDX-License-Identifier: Apache-2.0
"""The lab itself: six services on a real VMBus, Linux's own driver answers, hvring is on both sides."""

from __future__ import annotations

import struct

GUEST = {"balloon": True}
RUNS_BEFORE = "services"
SECONDS = 60
_NEGOTIATE, _HEARTBEAT = 0, 1
_ANSWER = 5  # header flags of an answer: transaction, response


def _message(kind: int, body: bytes, version: tuple[int, int] = (0, 0)) -> bytes:
    """Pipe header, header and body of a request (PROTOCOL §3.1)."""
    head = struct.pack("<HHHHHHIBBH", *version, kind, *version, len(body), 0, 0, 3, 0)
    return struct.pack("<II", 1, len(head) + len(body)) + head + body


def all_six_devices_are_offered(lab):
    offered = lab.sh("for d in /sys/bus/vmbus/devices/*; do echo ${d##*/} $(cat $d/class_id); done")
    for name, device in lab.devices.items():
        lab.check(f"{device.instance_guid} {{{device.class_guid}}}" in offered, f"{name} is offered")


def hv_utils_answers_a_negotiation_and_a_heartbeat(lab):
    lab.load("hv_utils")
    heartbeat = lab.devices["heartbeat"]
    if not lab.check(heartbeat.wait_open(), "hv_utils opens the channel"):
        return
    versions = struct.pack("<8H", 1, 0, 3, 0, 1, 0, 3, 0)
    answer = heartbeat.ask(_message(_NEGOTIATE, struct.pack("<HHI", 2, 2, 0) + versions))
    chosen = struct.unpack_from("<HH4x4H", answer, 28) if answer else None
    lab.check(chosen == (1, 1, 3, 0, 3, 0), f"framework 3.0 and heartbeat 3.0 are chosen: {chosen}")
    answer = heartbeat.ask(_message(_HEARTBEAT, struct.pack("<Q32x", 41), (3, 0)))
    lab.check(
        answer and struct.unpack_from("<Q", answer, 28) == (42,), "the heartbeat's number is one higher"
    )
    lab.check(answer and answer[25] == _ANSWER, "the answer's flags say that it is one")


def uio_hv_generic_loads(lab):
    lab.load("uio", "uio_hv_generic")
    lab.sh("test -d /sys/bus/vmbus/drivers/uio_hv_generic && grep -q ^uio_hv_generic /proc/modules")


def hvring_can_be_imported_on_both_sides(lab):
    import hvring

    version = lab.python("import hvring; print(hvring.__version__)")
    lab.check(
        version == hvring.__version__, f"the guest has hvring {version}, the host side {hvring.__version__}"
    )


def the_balloon_reports_over_qmp(lab):
    lab.sh("insmod /modules/hv_balloon.ko pressure_report_delay=0")  # else the first report comes after 45 s
    lab.check(lab.qmp.event("HV_BALLOON_STATUS_REPORT", 20), "a status report comes")
    report = lab.qmp("query-hv-balloon-status-report")
    lab.check(0 < report["available"] < 768 << 20, f"it fits the guest's memory: {report}")
