# SPDX-License-Identifier: Apache-2.0
"""probe"""

from __future__ import annotations

GUEST = {"memory": "1G"}


def facts(lab):
    lab.load("hv_utils")
    lab.try_sh(
        "which modprobe depmod fuser; ls /lib/modules; python3 -m hvring devices; python3 -m hvring bind heartbeat; ls -la /run"
    )
    lab.load("uio", "uio_hv_generic")
    lab.try_sh("python3 -m hvring devices; ls -la /run/hvring")
    lab.try_sh("python3 /t/uio_guest.py inotify")
    lab.try_sh(
        "python3 -m hvring devices --json; cat /run/hvring/bound.json; ls -l /sys/class/uio /dev/uio*; dmesg | tail -5"
    )
    lab.try_sh(
        "(python3 /t/uio_guest.py echo heartbeat > /tmp/echo.log 2>&1 &); sleep 1; cat /tmp/echo.log; python3 -m hvring devices"
    )
    d = lab.devices["heartbeat"]
    lab.check(d.wait_open(), "opened")
    import time

    t = time.monotonic()
    for n in range(100):
        lab.check(d.ask(b"%d" % n), "an echo") if n < 3 else d.ask(b"%d" % n)
    lab.say("100 echoes", time.monotonic() - t)
    lab.try_sh(
        "python3 /t/uio_guest.py echo heartbeat; python3 -m hvring unbind heartbeat; sleep 1; cat /tmp/echo.log; cat /run/hvring/bound.json; python3 -m hvring devices"
    )
    lab.try_sh(
        "python3 -m hvring bind heartbeat; python3 -m hvring unbind fcopy;  python3 -m hvring devices;python3 -m hvring unbind --all;python3 -m hvring devices"
    )
