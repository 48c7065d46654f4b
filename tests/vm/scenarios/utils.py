# SPDX-License-Identifier: Apache-2.0
"""``hvring run`` serves what hv_utils hands to user space, on kernels old and new; the rest stays the kernel's."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from dataclasses import replace

import _backup
from shell import ShellError

from hvring.host import GuestStatusError, HostError
from hvring.ic import Status

SECONDS = 240
_HVRING = "python3 -m hvring"
_LOG = "/tmp/run.log"
_POOL = "/var/lib/hyperv/.kvp_pool_0"
_MAC = "00:15:5D:01:02:03"
_PAIRS = {"color": "green", "näme-世😀": "€ 🚀", "full": "ü" * 1021, "number": 0xDEADBEEF}
_KERNELS_OWN = ("shutdown", "timesync", "heartbeat")


def the_kernel_has_the_devices_and_nobody_serves_them(lab):
    lab.load("hv_utils", "dummy")
    lab.sh(
        f"ip link set dummy0 address {_MAC} && ip addr add 192.0.2.7/24 dev dummy0 && ip link set dummy0 up"
    )
    _backup.mount(lab)
    lab.sh("mkdir -p /srv/in")
    there = set(lab.sh("ls /dev/vmbus").split())
    lab.check({"hv_kvp", "hv_vss"} <= there, f"its device files: {there}")
    lab.kept["there"] = [name for name in ("kvp", "vss", "fcopy") if f"hv_{name}" in there]
    lab.check(("hv_fcopy" in there) == lab.kernel.startswith("6.1."), "file copy until 6.9 only")


def run_serves_what_it_hands_over(lab):
    _start(lab, "--via utils --allow /srv/in")
    try:
        _await_event(lab, "opened", *lab.kept["there"])
        lab.host.do(lab.host.wait_ready(*lab.kept["there"], *_KERNELS_OWN, timeout=30))
    finally:
        lab.sh(f"cat {_LOG}")
    lab.kept["served"] = lab.kept["there"]
    versions = {name: str(lab.host.negotiated(name).version) for name in lab.kept["served"]}
    lab.check({"kvp": "4.0", "vss": "5.0"}.items() <= versions.items(), f"the kernel negotiates: {versions}")


def pairs_are_set_got_listed_and_removed(lab):
    _need(lab, "kvp")
    do, kvp = lab.host.do, lab.host.kvp
    for key, value in _PAIRS.items():
        do(kvp.set(key, value))
    # the kernel hands numbers over as decimal text
    wanted = {key: str(value) for key, value in _PAIRS.items()}
    listed = do(kvp.list())
    lab.check(dict(listed) == wanted and len(listed) == len(wanted), f"ENUMERATE lists them: {listed}")
    got = {key: do(kvp.get(key)) for key in _PAIRS}
    lab.check(got == wanted, f"GET gets each: {got}")
    lab.check(do(kvp.remove("full")) and not do(kvp.remove("full")), "DELETE removes a key once")
    lab.check(do(kvp.get("full")) is None, "and it is gone")
    for value, why in ((2**40, "a number that the kernel loses"), ("€" * 1023, "a text that it cuts")):
        status = _status(lab, kvp.set("not whole", value))
        lab.check(status == Status.NO_MORE_ITEMS, f"{why} is refused: {status}")
        lab.check(do(kvp.get("not whole")) is None, "and nothing of it is stored")


def the_guest_has_them_in_its_pool_files(lab):
    _need(lab, "kvp")
    seen = lab.sh(f"{_HVRING} kvp list --pool 0")
    lab.check("€ 🚀" in seen and str(0xDEADBEEF) in seen, f"hvring kvp lists them: {seen}")
    first = lab.python(f"print(open('{_POOL}', 'rb').read(512).rstrip(b'\\0').decode())")
    lab.check(first == "color", "where the in-tree daemon has them")
    lab.sh(f"{_HVRING} kvp set --pool 1 from-guest 'grüße'")
    lab.check(lab.host.do(lab.host.kvp.get("from-guest", 1)) == "grüße", "the host finds what the guest set")
    automatic = lab.host.do(lab.host.kvp.automatic())
    lab.check(automatic["OSName"] == "Lab Linux", f"the guest says who it is: {automatic}")
    lab.check(automatic["OSBuildNumber"] == lab.kernel, "and its kernel")


def ip_settings_are_told(lab):
    _need(lab, "kvp")
    told = lab.host.do(lab.host.kvp.get_ip(_MAC))
    lab.check("192.0.2.7" in told.addresses, f"GET_IP: {told}")
    lab.check("255.255.255.0" in told.subnets, "with its mask")


def a_backup_really_freezes(lab):
    _need(lab, "vss")
    _backup.backup_blocks_a_writer(lab)


def a_file_is_copied_in(lab):
    _need(lab, "fcopy")
    content = random.Random(1).randbytes(300_001)
    wanted = hashlib.sha256(content).hexdigest()
    report = lab.host.do(lab.host.fcopy.copy(content, "/srv/in/neu", name="größe.bin", create_path=True))
    lab.check(lab.sh("sha256sum /srv/in/neu/größe.bin").split()[0] == wanted, "it is the same file")
    lab.check(len(lab.sh("ls -A /srv/in/neu").splitlines()) == 1, "and nothing else is left")
    lab.say(f"{report.size} bytes in {report.seconds:.2f} s")


def a_copy_outside_the_allowed_directories_is_refused(lab):
    _need(lab, "fcopy")
    for directory in ("/etc", "/srv/in/../out"):
        status = _status(lab, lab.host.fcopy.copy(b"x", directory, name="hvring-lab", create_path=True))
        lab.check(status not in (None, 0), f"{directory}: {status}")
    lab.check(lab.try_sh("ls /etc/hvring-lab /srv/out")[1].count("No such file") == 2, "nothing is written")


def clock_heartbeat_and_samples_stay_the_kernels(lab):
    names = lab.sh("cat /sys/class/ptp/ptp*/clock_name")
    lab.check(names == "hyperv", f"the PTP clock of Hyper-V is there: {names}")
    lab.host.do(lab.host.heartbeat.beat())
    lab.host.do(lab.host.timesync.sample())
    lab.check(
        lab.host.heartbeat.status.contact.value == "ok", f"the kernel answers: {lab.host.heartbeat.status}"
    )
    told = json.loads(lab.sh(f"{_HVRING} time --json"))
    lab.check(told["quality"] == "samples come", f"hvring reads that clock: {told}")


def the_in_tree_daemons_are_refused(lab):
    for name in ("kvp", "vss"):
        _need(lab, name)
        status, output = lab.try_sh(f"timeout 20 hv_{name}_daemon -n", 40)
        lab.check(status not in (0, 124, 143), f"hv_{name}_daemon ends by itself, with {status}: {output}")
    lab.check(lab.host.do(lab.host.kvp.get("color")) == "green", "and hvring serves as before")


def devices_and_doctor_say_who_serves_what(lab):
    _need(lab, "kvp", "vss")
    listed = lab.sh(f"{_HVRING} devices")
    _, found = lab.try_sh(f"{_HVRING} doctor")
    for name in lab.kept["served"]:
        line = _line(listed, name)
        lab.check(f"/dev/vmbus/hv_{name}" in line and "by utils" in line, f"devices knows the way of {name}")
        said = f"hvring (process {lab.kept['pid']})"
        lab.check(said in line and said in _line(found, name), f"{name} is hvring's: {_line(found, name)}")
    for name in _KERNELS_OWN:
        lab.check(_line(listed, name).endswith("the kernel"), f"devices knows that {name} is the kernel's")
        lab.check("serves it by itself" in _line(found, name), f"and so does doctor: {_line(found, name)}")


def an_answer_that_is_late_is_not_taken_for_the_next_one(lab):
    """The agent is stopped when it has read a request of kvp, and before it reads one of vss.

    The kernel's patience ends after 30 s for both. What the agent says to the first one then would be the answer to
    the next.
    """
    _need(lab, "kvp", "vss")
    host, agent = lab.host, lab.kept["pid"]
    lab.sh(f"python3 /t/utils_guest.py {agent} {_POOL} > /tmp/stop.log 2>&1 &")
    lab.sh("await /tmp/stop.log locked")
    patience = _patience(lab, 60)
    try:
        since = time.monotonic()
        late = _begin(lab, host.kvp.set("late", "answer"))
        lab.sh("await /tmp/stop.log stopped")
        unread = _begin(lab, host.vss.check())
        statuses = _ended(lab, late), _ended(lab, unread)
        seconds = time.monotonic() - since
        lab.check(statuses == (Status.FAIL, Status.FAIL), f"the kernel's own answer to both: {statuses}")
        lab.check(seconds > 25, f"after its 30 s: {seconds:.1f}")
        following = _begin(lab, host.kvp.get("color"))
        time.sleep(1)
        lab.check(not following.done(), "the next request is handed out, and waits")
        lab.sh(f"kill -CONT {agent}")
        lab.check(following.result(30) == "green", "its answer is its own")
        lab.check(host.do(host.kvp.get("number")) == str(0xDEADBEEF), "and so is the one after that")
        _backs_up(lab)  # the service that had not read its request
    finally:
        _patience(lab, patience)
        lab.sh(f"kill -CONT {agent}")


def unbinding_is_not_held_up_and_binding_is_noticed(lab):
    """The kernel waits for whoever has the device open."""
    _need(lab, "kvp", "vss")
    _rebind(lab)


def an_agent_killed_while_frozen_leaves_nothing_frozen(lab):
    _need(lab, "kvp", "vss")
    host, agent = lab.host, lab.kept["pid"]
    host.do(host.vss.freeze())
    seen = _backup.start_writer(lab)
    lab.check(seen == {"writer": "D", "written": False}, f"while frozen: {seen}")
    lab.sh(f"kill -STOP {agent}")
    asked = _begin(lab, host.kvp.get("color"))
    time.sleep(0.5)
    since = time.monotonic()
    lab.sh(f"kill -KILL {agent}")
    lab.check(_ended(lab, asked) == Status.FAIL, "who waits for an answer hears E_FAIL")
    lab.check(time.monotonic() - since < 10, f"at once: {time.monotonic() - since:.1f} s")
    _backup.wait_written(lab)
    lab.check(_status(lab, host.vss.thaw()) == Status.FAIL, "the kernel says that nobody is there")


def run_without_a_word_chooses_by_itself(lab):
    """What can be had over uio only is served over it beside the rest."""
    _need(lab, "kvp", "vss")
    uio = "fcopy" not in lab.kept["served"] and not lab.kernel.startswith("6.1.")
    if uio:
        lab.load("uio", "uio_hv_generic")  # which takes file copy by itself
    served = [*lab.kept["served"], *(["fcopy"] if uio else [])]
    _start(lab, "--allow /srv/in")
    try:
        _await_event(lab, "opened", *served)
        lab.host.do(lab.host.wait_ready(*served, timeout=60))
    finally:
        lab.sh(f"cat {_LOG}")
    host = lab.host
    _backs_up(lab)
    lab.check(host.do(host.kvp.get("color")) == "green", "the pairs are still there")
    if "fcopy" in served:
        host.do(host.fcopy.copy(b"again", "/srv/in", name="again"))
        lab.check(lab.sh("cat /srv/in/again") == "again", "a file")
    _rebind(lab)  # what is unbound by hand is not taken from whoever does that


def a_daemon_that_has_the_device_is_named_and_followed(lab):
    """hvring waits for its end and takes over; the other services are not held up by it."""
    _need(lab, "kvp")
    summary = _end(lab)
    ways = {name: facts["way"] for name, facts in summary["services"].items() if name in lab.kept["served"]}
    lab.check(set(ways.values()) == {"hv_utils"}, f"the summary says by which way: {ways}")
    lab.sh("hv_kvp_daemon -n > /tmp/kvp.log 2>&1 & echo $! > /tmp/kvp.pid")
    _until(lab, lambda: lab.host.do(lab.host.kvp.get("color")) == "", "the daemon answers, as it does: empty")
    _start(lab, "--via utils --allow /srv/in")
    _await_event(lab, "opened", "vss")
    _await_event(lab, "waiting", "kvp")
    lab.check("hv_kvp_daemon" in lab.sh(f"cat {_LOG}"), "its name is told")
    lab.check(lab.host.do(lab.host.kvp.get("color")) == "", "and it goes on serving")
    lab.sh("kill $(cat /tmp/kvp.pid)")
    _until(lab, lambda: _value(lab, "color") == "green", "hvring takes over")


def hibernation_is_survived(lab):
    """There is no swap: the devices are suspended for the image and resumed, then it is given up.

    A guest that was frozen before gets a THAW that the kernel makes up. At the end, because a kernel may not be well
    afterwards in the lab: some, newer ones more often, close all channels and are never heard of again.
    """
    if not lab.kernel.startswith("6.1."):
        lab.skip("newer kernels do not come back from it every time in the lab")
    _need(lab, "kvp", "vss")
    host = lab.host
    host.do(host.vss.freeze())
    try:
        lab.try_sh("echo disk > /sys/power/state", 60)
    except ShellError:
        if any(host.negotiated(name) is not None for name in lab.devices):
            raise
        lab.skip("it suspended all devices, those that hvring serves, too, and did not come back in the lab")
    lab.sh("echo thawed > /mnt/after & wait $!", 40)
    host.do(host.wait_ready("kvp", "vss", timeout=60))
    lab.check(host.do(host.kvp.get("color")) == "green", "pairs over the device that was open before")
    lab.say("THAW is answered with", _status(lab, host.vss.thaw()))
    _backs_up(lab)


def the_host_saw_no_violation(lab):
    lab.check(not lab.host.violations, f"every rule was kept: {lab.host.violations}")
    for name, measure in lab.host.latency.items():
        lab.say(name, json.dumps(measure.as_dict()))


# ------------------------------------------------------------------------------------ the agent


def _start(lab, words):
    """An agent in the background; its process id is kept."""
    lab.kept["pid"] = int(lab.sh(f"rm -f {_LOG}; {_HVRING} run {words} --json > {_LOG} 2>&1 & echo $!"))


def _rebind(lab):
    guid = lab.devices["kvp"].instance_guid
    directory = "/sys/bus/vmbus/drivers/hv_utils"
    since = time.monotonic()
    lab.sh(f"echo {guid} > {directory}/unbind", 60)
    lab.check(time.monotonic() - since < 15, f"unbind returns after {time.monotonic() - since:.1f} s")
    lab.check("hv_kvp" not in lab.sh("ls /dev/vmbus"), "the device is gone")
    lab.check(
        _status(lab, lab.host.vss.check()) == 0, "the others are served meanwhile"
    )  # the flags, untouched
    lab.sh(f"echo {guid} > {directory}/bind")
    lab.host.do(lab.host.wait_ready("kvp", timeout=60))
    lab.check(lab.host.do(lab.host.kvp.get("color")) == "green", "the agent is back by itself")


def _end(lab):
    """End it as systemd does; its summary."""
    agent = f"/proc/{lab.kept['pid']}"
    lab.sh(
        f"kill {lab.kept['pid']}; n=0; while [ -d {agent} ]; do sleep 0.1; n=$((n+1)); [ $n -lt 200 ]; done"
    )
    return json.loads(lab.sh(f"grep summary {_LOG}"))


def _await_event(lab, kind, *services):
    for service in services:
        lab.sh(f'await {_LOG} \'*"event": "{kind}", "service": "{service}"*\' 60', 90)


def _line(text, word):
    """The line that is about this."""
    return next((line.rstrip() for line in text.splitlines() if word in line.split()[:3]), "")


# ------------------------------------------------------------------------------------ the host


def _begin(lab, verb):
    """Let the host ask; the future of what comes of it."""
    return asyncio.run_coroutine_threadsafe(verb, lab.host.loop)


def _ended(lab, asked):
    """The status that this ends with; None with another outcome."""
    try:
        lab.say("no status, but", repr(asked.result(60)))
    except GuestStatusError as error:
        return error.status
    return None


def _status(lab, verb):
    """The status that the guest answers with, or what the verb gives for success."""
    try:
        return lab.host.do(verb)
    except GuestStatusError as error:
        lab.say(error)
        return error.status


def _until(lab, holds, what):
    """What must come to hold, and how long that took; 30 s at most."""
    since = time.monotonic()
    while not (held := holds()) and time.monotonic() - since < 30:
        time.sleep(0.3)
    lab.check(held, f"{what}: after {time.monotonic() - since:.1f} s")


def _backs_up(lab):
    """A whole backup; the service may still be on its way back."""

    def goes_well():
        try:
            return lab.host.do(lab.host.vss.backup())
        except HostError as error:
            lab.say(error)
            return None

    _until(lab, goes_well, "a backup")


def _value(lab, key):
    """What GET answers, if it does."""
    try:
        return lab.host.do(lab.host.kvp.get(key))
    except HostError as error:
        lab.say(error)
        return None


def _patience(lab, timing):
    """Let the host wait so many seconds for answers, or as given; what it was before."""
    before = lab.host.sessions["kvp"].timing
    new = replace(before, answer=timing) if isinstance(timing, int) else timing
    for session in lab.host.sessions.values():
        session.timing = new
    return before


def _need(lab, *names):
    for name in names:
        if name not in lab.kept.get("served", ()):
            lab.skip(f"this kernel does not hand {name} to user space")
