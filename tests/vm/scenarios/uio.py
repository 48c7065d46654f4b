# SPDX-License-Identifier: Apache-2.0
"""The uio transport on a real VMBus: bind, open, signal, mask, full rings, other openers, unbind, give back."""

from __future__ import annotations

import json
import struct
import time

GUEST = {"memory": "1G", "subchannels": {"timesync": 1}}
SECONDS = 300
_NEGOTIATE, _HEARTBEAT = 0, 1
_HVRING = "python3 -m hvring"
_GUEST = "python3 /t/uio_guest.py"
_MASKS_ITSELF = ("6.12.43",)
_FILL = 1500  # packets of 1 KB, far more than ring, QEMU and socket hold


def hv_utils_has_them_first(lab):
    lab.load("hv_utils")
    listed = lab.sh(f"{_HVRING} devices")
    for name in ("shutdown", "timesync", "heartbeat", "kvp", "vss"):
        lab.check(_row(listed, name)[1] == "hv_utils", f"{name} belongs to hv_utils")
    lab.check(_beats(lab, 1), "hv_utils answers a heartbeat")


def without_the_module_bind_says_so_and_changes_nothing(lab):
    status, output = lab.try_sh(f"{_HVRING} bind heartbeat")
    said = "6.10 or newer" if _refuses(lab) else "--force" if _panics(lab) else "uio_hv_generic is not loaded"
    lab.check(status == 1 and said in output, f"it says: {output}")
    lab.check(_beats(lab, 1), "hv_utils still answers")
    status, output = lab.try_sh(f"{_HVRING} doctor")
    # Nobody has started the daemons that data exchange and backup need beside the kernel's driver.
    lab.check(status == 1 and "hv_kvp" in output, f"doctor's exit status: {status}")
    lab.check("hv_utils serves it" in output and lab.kernel in output, "doctor knows drivers and kernel")
    lab.load("uio", "uio_hv_generic")


def an_old_kernel_refuses_and_the_device_goes_back(lab):
    if not _refuses(lab):
        lab.skip("this kernel takes channels without monitor bit")
    output = lab.sh(f"{_GUEST} force heartbeat")
    lab.check("BindFailedError" in output and "6.10" in output, f"the kernel's 524 in words: {output}")
    lab.check(_row(lab.sh(f"{_HVRING} devices"), "heartbeat")[1] == "hv_utils", "hv_utils has it back")
    lab.check(_beats(lab, 1), "and answers")


def bind_is_announced_by_uevents_and_not_by_inotify(lab):
    _need_uio(lab)
    found = json.loads(lab.sh(f"{_GUEST} news heartbeat"))
    lab.check(found["uevents"], "uevents say that something came")
    lab.check(found["inotify"] == [], f"no inotify event for what the kernel made in sysfs: {found}")
    lab.check(found["driver"] == "uio_hv_generic", "heartbeat is bound")


def bind_twice_is_bind(lab):
    _need_uio(lab)
    names = ("heartbeat", "kvp", "vss", "fcopy")
    first = lab.sh(f"{_bind(lab)} {' '.join(names)}", 60)
    lab.check(lab.sh(f"{_bind(lab)} {' '.join(names)}") == first, f"the same again: {first}")
    rows = json.loads(lab.sh(f"{_HVRING} devices --json"))
    bound = {row["service"] for row in rows if row["driver"] == "uio_hv_generic"}
    lab.check(bound == set(names), f"bound: {bound}")
    sizes = {row["service"]: row["ring_size"] for row in rows if (row["node"] or "").startswith("/dev/uio")}
    lab.check(sizes.keys() == bound, f"and each has its node: {list(sizes)}")
    lab.check(sizes["kvp"] == 2 << 20 and sizes["fcopy"] in (16384, 20480), f"ring sizes: {sizes}")
    status, output = lab.try_sh(f"{_HVRING} doctor")
    lab.check(status == 1 and output.count("nobody serves it") == 4, "doctor wants them to be served")


def packets_go_there_and_back(lab):
    _need_uio(lab)
    kvp = lab.devices["kvp"]
    _start(lab, "echo kvp")
    lab.check(kvp.wait_open(), "the channel is open")
    listed = lab.sh(f"{_HVRING} devices")
    lab.check("open" in _row(listed, "kvp"), "devices says so")
    since = time.monotonic()
    payloads = [struct.pack("<Q", n) * (1 + n % 50) for n in range(200)]
    wrong = [n for n, payload in enumerate(payloads) if kvp.ask(payload) != payload]
    lab.say(f"{(time.monotonic() - since) / 200 * 1e3:.2f} ms for one round trip")
    lab.check(wrong == [], f"200 echoes of all sizes: {wrong}")
    stats = _stop(lab, "kvp")
    lab.check(stats["signals_sent"] <= 200, "one signal for an answer, not more")
    lab.check(stats["rechecks_needed"] == 0, f"no wake-up was lost: {stats}")
    lab.check(
        (stats["recheck_every"] > 0) == _masks_itself(lab), "the kernel that masks itself is recognised"
    )
    lab.check(kvp.wait_closed(), "the end closes the channel")


def the_file_takes_four_bytes_and_the_mask_is_ours(lab):
    _need_uio(lab)
    kvp = lab.devices["kvp"]
    _start(lab, "facts kvp")
    kvp.wait_open()
    _await(lab, "facts", "*ready*")
    kvp.send(b"1" * 8)
    facts = _ended(lab, "facts")
    lab.check(facts["wrong_sizes"] == ["EINVAL"] * 4, f"other sizes are EINVAL: {facts['wrong_sizes']}")
    lab.check(facts["opened"] == _masks_itself(lab), f"the mask after open: {facts['opened']}")
    lab.check((facts["write_0"], facts["write_1"]) == (1, 0), "write(0) masks, write(1) unmasks")
    lab.check(facts["quiet"] is None, "no interrupt while masked")
    lab.check(facts["still_quiet"] is None, "and none for what is there when the mask goes")
    lab.check(kvp.wait_closed(), "closed")


def the_rings_are_in_sysfs_too(lab):
    _need_uio(lab)
    found = json.loads(lab.sh(f"{_GUEST} ring kvp"))
    lab.say(found)
    lab.check(found["closed"] == "ENODEV", f"not while the channel is closed: {found['closed']}")
    lab.check(found["listed"] == 0, "the primary is listed as channel 0, without a monitor bit")
    lab.check(found["size"] == 4 << 20 and found["same"], "channels/<relid>/ring is uio map 0")
    lab.check(found["offset"], "an offset is an offset")
    lab.check(found["doubled"], "the data area can be mapped twice in a row")


def a_subchannel_has_rings_of_its_own(lab):
    """Offered by the host while the primary is open, as on Hyper-V, where the device's protocol asks for it."""
    _need_uio(lab)
    if _panics(lab):
        lab.skip("an interrupt of a sub-channel ends this kernel")
    timesync = lab.devices["timesync"]
    lab.sh(f"{_bind(lab)} timesync")
    _start(lab, "sub timesync")
    _await(lab, "sub", "*alone*")
    lab.check(timesync.wait_open(), "the primary is open")
    timesync.offer_subchannels()
    # QEMU sends the offer before it takes the guest's next message
    shutdown = lab.devices["shutdown"].instance_guid
    lab.sh(f"for do in unbind bind; do echo -n {shutdown} > /sys/bus/vmbus/drivers/hv_utils/$do; done")
    if _masks_itself(lab):
        found = _ended(lab, "sub")
        lab.check("signals only primary" in found["refused"], f"this kernel cannot signal it: {found}")
        return
    lab.check(timesync.wait_subchannels(1), "the kernel opens the sub-channel")
    _await(lab, "sub", "both")
    for channel in (1, 0, 1):
        echoes = (timesync.ask(b"%08d" % n, channel=channel) == b"%08d" % n for n in range(50))
        if not lab.check(all(echoes), f"50 echoes on channel {channel}"):
            return
    found = _stop(lab, "timesync", "sub")
    lab.say(found)
    lab.check(found["second"] == "DeviceBusyError", f"a second opener: {found['second']}")
    counts = {name: found[name]["packets_received"] for name in ("primary", "sub")}
    lab.check(counts == {"primary": 51, "sub": 100}, f"each has its own packets: {counts}")
    lab.check(found["closed"] == found["reopened"] == "ENODEV", "the end of the primary is its end too")
    lab.check(timesync.wait_subchannels() and timesync.wait_closed(), "the host saw both closed")


def an_open_device_is_not_opened_again_nor_unbound(lab):
    _need_uio(lab)
    found = json.loads(lab.sh(f"{_GUEST} busy kvp"))
    lab.check(found["second"] == "DeviceBusyError", f"a second hvring: {found['second']}")
    lab.check(found["unbind"] == "DeviceBusyError", f"unbind: {found['unbind']}")
    lab.check(found["after"] == "opened", "after close it opens")
    lab.check(found["foreign"] == "DeviceBusyError", f"another program's opening: {found['foreign']}")
    lab.check(found["reopened"] == [0, 0, 0], f"reopened rings are empty: {found['reopened']}")


def a_sender_waits_for_room(lab):
    _need_uio(lab)
    fcopy = lab.devices["fcopy"]
    _start(lab, f"fill fcopy {_FILL} 1000")
    lab.check(fcopy.wait_open(), "open")
    _await(lab, "fill", "*full*")  # nobody reads the device's socket: QEMU stops taking packets
    got = []
    while len(got) < _FILL and (packet := fcopy.receive(20)):
        got.append(struct.unpack_from("<I", packet.payload)[0])
    lab.check(got == list(range(_FILL)), f"{len(got)} of {_FILL} packets came, in order")
    stats = _ended(lab, "fill")
    lab.check(stats["ring_full"] > 0, f"the ring was full {stats['ring_full']} times")
    lab.check(fcopy.wait_closed(), "closed")


def a_host_waits_for_room(lab):
    _need_uio(lab)
    fcopy = lab.devices["fcopy"]
    _start(lab, "late fcopy 100")
    lab.check(fcopy.wait_open(), "open")
    seen = len(fcopy.notes)
    for n in range(100):
        fcopy.send(struct.pack("<I", n).ljust(1000, b"\0"))
    lab.say(fcopy.statistics())
    lab.check("W" in [note[0] for note in fcopy.notes[seen:]], "the host finds the ring full")
    _await(lab, "late", "*open*")
    lab.sh("echo go > /tmp/gate")
    stats = _ended(lab, "late")
    lab.check(stats["in_order"] == 100, f"all 100 came in order: {stats}")
    lab.check(
        stats["room_signals_sent"] > 0, f"the host was woken for room {stats['room_signals_sent']} times"
    )
    lab.check(fcopy.wait_closed(), "closed")


def an_opener_waits_until_the_device_is_bound(lab):
    _need_uio(lab)
    lab.sh(f"{_HVRING} unbind kvp")
    lab.check(lab.devices["kvp"].wait_open(), "hv_utils has kvp again")
    _start(lab, "wait kvp")
    _await(lab, "wait", "*waiting*")
    lab.sh(f"{_bind(lab)} kvp")
    _await(lab, "wait", "*opened*")
    lab.say(lab.sh("cat /tmp/wait.log"))
    _stop(lab, "kvp", "wait")


def the_agent_serves_and_gives_back_when_it_ends(lab):
    _need_uio(lab)
    if _panics(lab):
        lab.skip("run does not bind on this kernel")
    lab.sh(f"{_HVRING} unbind --all", 60)
    lab.check(_beats(lab, 1), "hv_utils answers")
    for signal in ("TERM", "KILL"):
        opens = lab.devices["heartbeat"].opens
        _start_agent(lab)
        _await(lab, "run", "*opened*")
        lab.check(_beats(lab, 50), "the agent answers 50 heartbeats")
        lab.check(lab.devices["heartbeat"].opens == opens + 1, "the channel was opened anew")
        if signal == "TERM":
            output = lab.sh(f"{_HVRING} doctor; true")
            lab.check("served by hvring" in output, "doctor names the agent")
        _end_agent(lab, signal)
        listed = lab.sh(f"{_HVRING} devices")
        lab.check(
            _row(listed, "heartbeat")[1] == ("hv_utils" if signal == "TERM" else "uio_hv_generic"),
            f"after SIG{signal}",
        )
        lab.sh("cat /tmp/run.log" if signal == "TERM" else f"{_HVRING} unbind --all")
        lab.check(_beats(lab, 1), "hv_utils has it back and answers")
    lab.check(lab.sh("cat /run/hvring/bound.json") == "{}", "nothing is remembered any more")


def the_agent_without_names_serves_what_is_bound(lab):
    _need_uio(lab)
    lab.sh(f"{_HVRING} unbind --all; {_HVRING} unbind fcopy")
    status, output = lab.try_sh(f"{_HVRING} run --via uio")
    lab.check(status == 1 and "hvring bind kvp" in output, f"nothing is bound: {output}")
    lab.sh(f"{_bind(lab)} heartbeat")
    _start_agent(lab, "--via uio")
    _await(lab, "run", "*opened*")
    first = json.loads(lab.sh("grep serving /tmp/run.log"))
    lab.check(first["serving"] == ["heartbeat"] and not first["rehearsal"], f"it says: {first}")
    lab.check(
        first["pools"] == "/var/lib/hyperv" and first["allow"] == [], "with the system's pools, no files"
    )
    lab.check(_beats(lab, 3), "it answers")
    _end_agent(lab, "TERM")
    lab.check(_row(lab.sh(f"{_HVRING} devices"), "heartbeat")[1] == "uio_hv_generic", "it stays bound")


def a_device_taken_away_ends_whoever_waits(lab):
    """Last, because this kernel cannot open the channel again afterwards."""
    _need_uio(lab)
    device = lab.devices["vss"]
    lab.sh(f"{_bind(lab)} vss")
    _start(lab, "taken vss")
    lab.check(device.wait_open(), "open")
    _await(lab, "taken", "*waiting*")
    lab.sh(f"echo -n {device.instance_guid} > /sys/bus/vmbus/drivers/uio_hv_generic/unbind")
    found = _ended(lab, "taken")
    lab.check(found["wait"] == "ChannelRescindedError", f"wait: {found['wait']}")
    lab.check(found["select"] == "ChannelRescindedError", f"a second waiter, by asyncio: {found['select']}")
    lab.check(found["send"] == "ChannelRescindedError", f"send: {found['send']}")
    lab.check(found["sysfs"] == "SIGBUS", f"a mapping through sysfs: {found['sysfs']}")
    lab.check(found["plain"] == "DeviceUnavailableError", f"the plain device: {found['plain']}")
    lab.sh(f"{_bind(lab)} vss")
    status, output = lab.try_sh(f"{_HVRING} doctor")
    lab.check(status == 1 and "only a restart" in output, "doctor sees that the channel is lost")
    status, output = lab.try_sh(f"{_GUEST} open vss")
    lab.check("DeviceBusyError" in output and "restart" in output, f"and so does open: {output}")


def _row(table, name):
    """The words of a device's line."""
    return next(line.split() for line in table.splitlines() if line.split()[0] == name)


def _refuses(lab):
    return lab.kernel.startswith("6.1.")


def _panics(lab):
    return lab.kernel.startswith("6.12.57")


def _bind(lab):
    return f"{_HVRING} bind --force" if _panics(lab) else f"{_HVRING} bind"


def _masks_itself(lab):
    return lab.kernel.startswith(_MASKS_ITSELF)


def _need_uio(lab):
    if _refuses(lab):
        lab.skip("uio_hv_generic of this kernel refuses channels without monitor bit")


def _start(lab, words):
    """A part of the guest's program in the background, its log named after it."""
    lab.sh(f"{_GUEST} {words} > /tmp/{words.split()[0]}.log 2>&1 &")


def _start_agent(lab, words="heartbeat --bind"):
    lab.sh("rm -f /tmp/run.log")  # of an earlier one
    lab.sh(f"{_HVRING} run {words} --json > /tmp/run.log 2>&1 & echo $! > /tmp/run.pid")


def _end_agent(lab, signal):
    lab.sh(
        f"p=$(cat /tmp/run.pid); kill -{signal} $p; while readlink /proc/$p/exe > /dev/null; do sleep 0.05; done"
    )


def _stop(lab, name, program="echo"):
    """End an echo; its statistics."""
    lab.devices[name].send(b"stop")
    return _ended(lab, program)


def _await(lab, program, pattern):
    """Until the program's log has such a line."""
    lab.sh(f"await /tmp/{program}.log '{pattern}'", 60)


def _ended(lab, program):
    """What the program found, its last line."""
    _await(lab, program, "{*")
    return json.loads(lab.sh(f"tail -n 1 /tmp/{program}.log"))


def _beats(lab, count):
    """Negotiate, and have that many heartbeats answered rightly by whoever has the channel."""
    device = lab.devices["heartbeat"]
    if not device.wait_open():
        return False
    versions = struct.pack("<8H", 1, 0, 3, 0, 1, 0, 3, 0)
    answer = device.ask(_message(_NEGOTIATE, struct.pack("<HHI", 2, 2, 0) + versions))
    if not answer or struct.unpack_from("<HH4x4H", answer, 28) != (1, 1, 3, 0, 3, 0):
        return False
    for n in range(count):
        answer = device.ask(_message(_HEARTBEAT, struct.pack("<Q32x", n), (3, 0)))
        if not answer or struct.unpack_from("<Q", answer, 28) != (n + 1,):
            return False
    return True


def _message(kind, body, version=(0, 0)):
    """Pipe header, header and body of a request (PROTOCOL §3.1)."""
    head = struct.pack("<HHHHHHIBBH", *version, kind, *version, len(body), 0, 0, 3, 0)
    return struct.pack("<II", 1, len(head) + len(body)) + head + body
