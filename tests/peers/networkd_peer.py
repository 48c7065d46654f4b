# SPDX-License-Identifier: Apache-2.0
"""Runs systemd-networkd on a file in namespaces of its own; started by test_ip_settings.py by `unshare -m -n`.

Arguments: the name and the text of the file, the adapter's name and MAC, how many addresses to wait for.  Prints what
a host's GET_IP would tell then, and what networkd said.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict

from hvring.guest import network

NETWORKD = "/lib/systemd/systemd-networkd"


def do(*words: str) -> None:
    subprocess.run(words, check=True)


def main() -> None:
    name, text, adapter, mac, wanted = sys.argv[1:]
    do("mount", "--make-rprivate", "/")
    for where in ("/run", "/etc/systemd/network"):
        do("mount", "-t", "tmpfs", "none", where)
    do(
        "mount", "-t", "sysfs", "-o", "ro", "none", "/sys"
    )  # no udev has to be waited for where it is read-only
    for folder in ("links", "leases", "lldp"):
        os.makedirs(f"/run/systemd/netif/{folder}")
    do("chown", "-R", "systemd-network:systemd-network", "/run/systemd/netif")
    with open(f"/etc/systemd/network/{name}", "w", encoding="ascii") as file:
        file.write(text)
    do("ip", "link", "add", adapter, "address", mac, "type", "veth", "peer", "name", "hvpeer0")
    do("ip", "link", "set", "hvpeer0", "up")
    environment = {**os.environ, "SYSTEMD_LOG_TARGET": "console", "SYSTEMD_LOG_LEVEL": "info"}
    networkd = subprocess.Popen([NETWORKD], stderr=subprocess.PIPE, text=True, env=environment)
    found: dict[str, object] = {}
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at and networkd.poll() is None:
        info = network.ip_info(mac)
        found = {} if info is None else asdict(info)
        if info is not None and len(info.addresses.split(";")) > int(wanted) and "fe80::1" in info.gateways:
            break
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        networkd.terminate()
    said = networkd.communicate()[1]
    print(json.dumps({"found": found, "said": said}))


main()
