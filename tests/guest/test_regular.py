# SPDX-License-Identifier: Apache-2.0
"""What stands in the place of another program's file hangs nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvring.guest import leases, network
from hvring.guest.identity import DomainName, Identity
from hvring.guest.regular import LARGEST, read_regular


def test_the_beginning_or_the_end_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"beginning" + bytes(LARGEST) + b"end")
    assert read_regular(path, 9) == b"beginning"
    assert read_regular(path, 3, last=True) == b"end"
    assert len(read_regular(path)) == len(read_regular(path, last=True)) == LARGEST
    path.write_bytes(b"")
    assert read_regular(path) == read_regular(path, last=True) == b""


def test_a_fifo_a_device_and_a_directory_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            read_regular(path)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nowhere")


def test_fifos_in_the_directories_of_dhcp_clients_are_no_leases(tmp_path: Path) -> None:
    """Those directories belong to users that are not root."""
    for name in ("systemd/netif/leases/2", "NetworkManager/devices/2"):
        (tmp_path / name).parent.mkdir(parents=True)
        os.mkfifo(tmp_path / name)
    for name in ("dhcpcd/eth0.lease", "dhcp/dhclient.leases", "NetworkManager/internal-x-eth0.lease"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    assert not leases.is_leased(2, "eth0", {"192.0.2.7"}, run=str(tmp_path), state=str(tmp_path))


def test_fifos_in_the_place_of_what_describes_the_system_are_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    release = tmp_path / "release"
    release.write_text("NAME=Lab\nVERSION_ID=13\n", encoding="utf-8")
    who = Identity(
        domain_name=DomainName(lambda host: host), os_releases=[str(tmp_path / "fifo"), str(release)]
    )
    found = dict(who.automatic())
    assert (found["OSName"], found["OSMajorVersion"]) == ("Lab", "13")
    assert list(network._name_servers(str(tmp_path / "fifo"))) == []


def test_odd_name_servers_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(b"nameserver 192.0\0.2.1\nnameserver \xff\nnameserver\nnameserver 192.0.2.53 x\n")
    assert list(network._name_servers(str(path))) == ["192.0.2.53"]
