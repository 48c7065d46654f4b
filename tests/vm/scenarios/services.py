# SPDX-License-Identifier: Apache-2.0
"""``hvring run`` serves all six services over uio_hv_generic to hvring's own host, with effects that are real."""

from __future__ import annotations

import hashlib
import json
import random
import time

import _backup

GUEST = {"balloon": True}  # for the boot that it shares with smoke
SECONDS = 150
_HOST_YEAR_2033 = 1_988_150_400
_DRIVER = "basename $(readlink /sys/bus/vmbus/devices/{}/driver)"


def hv_utils_is_served_first(lab):
    """The devices belong to the kernel's driver, and the same host talks to it."""
    lab.load("hv_utils", "uio", "uio_hv_generic")
    services = [name for name, device in lab.devices.items() if _driver(lab, device) == "hv_utils"]
    lab.check({"shutdown", "timesync", "heartbeat", "kvp", "vss"} <= set(services), f"it has {services}")
    lab.host.do(lab.host.wait_ready("shutdown", "timesync", "heartbeat", "vss"))
    lab.host.do(lab.host.heartbeat.beat())
    lab.check(not lab.host.violations, f"it breaks no rule: {lab.host.violations}")


def the_kernels_clock_of_the_host_is_read_and_left_alone(lab):
    lab.host.do(lab.host.timesync.sample())
    first = _time(lab)
    lab.check(first["quality"] == "samples come", f"`hvring time` reads the PTP clock: {first}")
    lab.host.timesync.skew_ns = 100 * 10**9
    lab.host.do(lab.host.timesync.sample())
    moved = _time(lab)["offset_ns"] - first["offset_ns"]
    lab.host.timesync.skew_ns = 0
    lab.host.do(lab.host.timesync.sample())
    lab.check(abs(moved - 100 * 10**9) < 10**9, f"it follows a host that is 100 s ahead: {moved} ns")


def bind_takes_them_from_hv_utils(lab):
    if lab.kernel.startswith("6.1."):
        lab.skip("uio_hv_generic of this kernel refuses channels without monitor bit")
    lab.sh("python3 -m hvring bind --force shutdown timesync heartbeat kvp vss fcopy", 90)
    for name, device in lab.devices.items():
        lab.check(_driver(lab, device) == "uio_hv_generic", f"{name} is bound to uio_hv_generic")


def run_negotiates_all_six(lab):
    _need_uio(lab)
    _backup.mount(lab)
    lab.sh("mkdir /srv/in")
    lab.sh("python3 -m hvring run --set-clock --allow /srv/in --json > /tmp/run.log 2>&1 &")
    try:
        lab.host.do(lab.host.wait_ready(timeout=60))
    finally:
        lab.sh("cat /tmp/run.log")
    versions = {name: str(lab.host.negotiated(name).version) for name in lab.devices}
    wanted = {
        "shutdown": "3.2",
        "timesync": "4.0",
        "heartbeat": "3.0",
        "kvp": "4.0",
        "vss": "5.0",
        "fcopy": "1.1",
    }
    lab.check(versions == wanted, f"the same versions as hv_utils: {versions}")


def heartbeats_keep_their_cadence(lab):
    _need_ready(lab)
    measure, since = lab.host.latency["heartbeat"], time.monotonic()
    wanted = measure.exchanges + 4
    while measure.exchanges < wanted and time.monotonic() - since < 30:
        time.sleep(0.05)
    lab.check(measure.exchanges >= wanted, f"4 beats in {time.monotonic() - since:.1f} s")
    status = lab.host.heartbeat.status
    lab.check(status.misses == 0 and status.contact.value == "ok", f"without a miss: {status}")


def a_sample_leaves_the_clock_alone_unless_the_guest_was_paused(lab):
    """A host whose time jumps ahead looks like one that went on while the guest stood still."""
    _need_ready(lab)
    before, began = int(lab.sh("date +%s")), time.monotonic()
    lab.host.timesync.skew_ns = -3600 * 10**9
    lab.host.do(lab.host.timesync.sample())
    passed = int(lab.sh("date +%s")) - before
    lab.check(
        -5 < passed - (time.monotonic() - began) < 30, f"a SAMPLE from behind changes nothing: {passed} s"
    )
    lab.host.timesync.skew_ns = 3600 * 10**9
    lab.host.do(lab.host.timesync.sample())
    _is_as_told(lab, "a SAMPLE behind a pause sets the clock")
    lab.sh("grep 'this machine stood still for' /tmp/run.log")


def sync_sets_the_clock(lab):
    _need_ready(lab)
    lab.host.timesync.skew_ns = (_HOST_YEAR_2033 - int(time.time())) * 10**9
    lab.host.do(lab.host.timesync.sync())
    _is_as_told(lab, "SYNC sets the clock")


def data_is_exchanged_both_ways(lab):
    _need_ready(lab)
    host = lab.host
    host.do(host.kvp.set("from-host", "grün 🚀"))
    host.do(host.kvp.set("number", 2**40))
    seen = lab.sh("python3 -m hvring kvp list --pool 0")
    lab.check("grün 🚀" in seen and str(2**40) in seen, "the guest finds what the host set in its pool files")
    record = lab.python("print(open('/var/lib/hyperv/.kvp_pool_0', 'rb').read(512).rstrip(b'\\0').decode())")
    lab.check(record == "from-host", "where the in-tree daemon has it")
    lab.sh("python3 -m hvring kvp set --pool 1 from-guest 'hello host'")
    lab.check(host.do(host.kvp.get("from-guest", 1)) == "hello host", "the host finds what the guest set")
    lab.check(host.do(host.kvp.remove("from-host")), "the host removes a key")
    automatic = host.do(host.kvp.automatic())
    lab.check(automatic["OSName"] == "Lab Linux", f"the guest says who it is: {automatic}")
    lab.check(automatic["OSBuildNumber"] == lab.kernel, "and its kernel")


def a_backup_really_freezes(lab):
    _need_ready(lab)
    _backup.backup_blocks_a_writer(lab)


def a_file_is_copied_in(lab):
    _need_ready(lab)
    content = random.Random(1).randbytes(500_001)
    wanted = hashlib.sha256(content).hexdigest()
    report = lab.host.do(lab.host.fcopy.copy(content, "/srv/in/new", name="file.bin", create_path=True))
    lab.check(lab.sh("sha256sum /srv/in/new/file.bin").split()[0] == wanted, "it is the same file")
    lab.check(lab.sh("ls -A /srv/in/new") == "file.bin", "and nothing else is left")
    lab.say(f"{report.size} bytes in {report.seconds:.2f} s")


def the_host_saw_no_violation(lab):
    _need_ready(lab)
    lab.check(not lab.host.violations, f"every rule was kept: {lab.host.violations}")
    for name, measure in lab.host.latency.items():
        lab.say(name, json.dumps(measure.as_dict()))


def a_shutdown_powers_the_guest_off(lab):
    """The answer comes first; then the machine goes down by itself."""
    _need_ready(lab)
    lab.host.do(lab.host.shutdown.request(text="the lab is done"))
    status = lab.qemu.wait(30)
    lab.check(status == 0, f"QEMU ends with the guest: {status}")
    lab.check(not lab.host.violations, f"no rule was broken on the way: {lab.host.violations}")


def _is_as_told(lab, what):
    told = lab.host.timesync.last.host_time_ns // 10**9
    now = int(lab.sh("date +%s"))
    lab.check(0 <= now - told < 30, f"{what}: {now}, the host said {told}")


def _time(lab):
    return json.loads(lab.sh("python3 -m hvring time --json; true"))


def _driver(lab, device):
    return lab.try_sh(_DRIVER.format(device.instance_guid))[1]


def _need_uio(lab):
    if _driver(lab, lab.devices["kvp"]) != "uio_hv_generic":
        lab.skip("the devices are not bound")


def _need_ready(lab):
    if any(lab.host.negotiated(name) is None for name in lab.devices):
        lab.skip("the services are not all served")
