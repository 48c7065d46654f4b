# SPDX-License-Identifier: Apache-2.0
"""The files for a host's SET_IP, read by the programs that they are for."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hvring.guest.ip_backends import netplan, networkd, networkmanager
from hvring.guest.ip_backends.order import Adapter, Order, order
from hvring.guest.network import IpInfo

ROOT = Path(__file__).parents[2]
ADAPTER = Adapter("hvtest0", "00:15:5d:01:02:03")
WISHES = {
    "static": IpInfo(
        3,
        False,
        "192.0.2.7;198.51.100.7;2001:db8::7",
        "255.255.255.0;255.255.255.128;/64",
        "192.0.2.1;203.0.113.1;fe80::1;",
        "192.0.2.53;2001:db8::53;",
    ),
    "dhcp": IpInfo(1, True, "", "", "", ""),
    "dhcp and more": IpInfo(3, True, "2001:db8::7;2001:db8::8", "64;128", "2001:db8::1", "192.0.2.53"),
    "host route": IpInfo(1, False, "192.0.2.7", "255.255.255.255", "198.51.100.1", ""),
}
#: The programs, and what of theirs a small machine may lack; other libraries are those of this machine.
NETPLAN = ("netplan.io", "libnetplan0", "libyaml-0-2")
NMCLI = (
    "network-manager",
    "libnm0",
    "libndp0",
    "libteamdctl0",
    "libbluetooth3",
    "libjansson4",
    "libmm-glib0",
)
NMCLI = (
    *NMCLI,
    "libnewt0.52",
    "libslang2",
    "libpolkit-agent-1-0",
    "libpolkit-gobject-1-0",
    "libnss3",
    "libnspr4",
)


@pytest.fixture(params=WISHES)
def wanted(request: pytest.FixtureRequest) -> Order:
    return order(ADAPTER, WISHES[request.param])


def program(folder: Path, name: str) -> tuple[str, dict[str, str]]:
    """The program and its environment; skips where it does not start."""
    path = folder / name
    libraries = [folder / where / f"{os.uname().machine}-linux-gnu" for where in ("usr/lib", "lib")]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries)), "LC_ALL": "C.UTF-8"}
    done = subprocess.run([path, "--help"], env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 127:
        pytest.skip(f"{path.name} does not run here: {done.stderr.strip()}")
    return str(path), environment


def test_netplan_makes_networkds_file_of_it(unpack: Any, tmp_path: Path, wanted: Order) -> None:
    generate, environment = program(unpack("netplan", *NETPLAN), "usr/libexec/netplan/generate")
    (tmp_path / "etc/netplan").mkdir(parents=True)
    path = tmp_path / "etc/netplan" / netplan.file_name(wanted)
    path.write_text(netplan.text(wanted))
    path.chmod(netplan.MODE)
    line = [generate, "--root-dir", str(tmp_path)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (made,) = (tmp_path / "run/systemd/network").glob("*.network")
    lines = made.read_text().splitlines()
    ours = networkd.text(wanted).splitlines()
    for key in ("Address", "DNS", "Gateway", "Metric", "Name"):
        assert sorted(x for x in lines if x.startswith(f"{key}=")) == sorted(
            x for x in ours if x.startswith(f"{key}=")
        )
    assert ("DHCP=ipv4" in lines) == wanted.dhcp


def test_networkmanager_reads_every_word_of_the_keyfile(unpack: Any, wanted: Order) -> None:
    nmcli, environment = program(unpack("network-manager", *NMCLI), "usr/bin/nmcli")
    text = networkmanager.text(wanted)
    line = [nmcli, "--offline", "connection", "modify", "connection.zone", "test"]
    done = subprocess.run(line, env=environment, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    theirs, ours = (configparser.ConfigParser(interpolation=None) for _ in range(2))
    theirs.read_string(done.stdout)
    ours.read_string(text)
    for section in ours.sections():
        for key, value in ours[section].items():
            if key == "gateway":  # stands behind the first address when NetworkManager writes it
                assert theirs[section]["address1"].endswith(f",{value}")
            elif key == "address1" and "gateway" in ours[section]:
                assert theirs[section][key] == f"{value},{ours[section]['gateway']}"
            else:
                assert theirs[section][key] == value


def test_networkd_sets_the_adapter_up_and_the_host_reads_it_back() -> None:
    if os.geteuid() != 0 or not os.path.exists("/lib/systemd/systemd-networkd") or not shutil.which("ip"):
        pytest.skip("needs root, systemd-networkd and ip")
    probe = subprocess.run(
        ["unshare", "-m", "-n", "ip", "link", "add", "x", "type", "veth", "peer", "name", "y"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"no network namespace with a pair of adapters here: {probe.stderr.strip()}")
    wish = WISHES["static"]
    wanted = order(ADAPTER, wish)
    peer = Path(__file__).with_name("networkd_peer.py")
    words = [networkd.file_name(wanted), networkd.text(wanted), ADAPTER.name, ADAPTER.mac, "3"]
    done = subprocess.run(
        ["unshare", "-m", "-n", "--kill-child", sys.executable, str(peer), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=True,
    )
    seen = json.loads(done.stdout)
    found = seen["found"]
    assert "Unknown" not in seen["said"]
    assert "Failed" not in seen["said"]
    assert found["addresses"].split(";")[:3] == wish.addresses.split(";")
    assert found["subnets"].split(";")[:3] == wish.subnets.split(";")
    assert set(found["gateways"].split(";")) == set(wish.gateways.split(";"))
    assert (found["family"], found["dhcp"]) == (3, False)
