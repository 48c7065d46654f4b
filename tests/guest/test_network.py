# SPDX-License-Identifier: Apache-2.0
"""Addresses from netlink, compared with iproute2 where it is there."""

from __future__ import annotations

import ipaddress
import json
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hvring.errors import EffectError
from hvring.guest import leases, netlink, network
from hvring.guest.network import Address, Interface

ROOT = Path(__file__).parents[2]
LOOPBACK_MAC = "00:00:00:00:00:00"


@pytest.fixture
def iproute() -> Any:
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")

    def ask(*words: str) -> Any:
        return json.loads(subprocess.check_output(["ip", "-json", *words]) or "[]")

    return ask


def facts_by_iproute(links: Any) -> dict[str, Any]:
    return {
        link["ifname"]: (
            link["ifindex"],
            (link.get("address") or "").upper(),
            "LOOPBACK" in link["flags"],
            sorted((a["local"], a["prefixlen"], not a.get("dynamic", False)) for a in link["addr_info"]),
        )
        for link in links
    }


def facts_by_netlink(interfaces: tuple[Interface, ...]) -> dict[str, Any]:
    return {
        i.name: (i.index, i.mac, i.loopback, sorted((a.text, a.prefix, a.permanent) for a in i.addresses))
        for i in interfaces
    }


def test_interfaces_and_addresses_are_those_of_iproute2(iproute: Any) -> None:
    assert facts_by_netlink(network.interfaces()) == facts_by_iproute(iproute("address"))


def test_gateways_are_those_of_iproute2(iproute: Any) -> None:
    expected = set()
    for family in ("-4", "-6"):
        for route in iproute(family, "route", "show", "default"):
            hops = route.get("nexthops", [route])
            expected |= {
                (socket.if_nametoindex(hop["dev"]), hop["gateway"]) for hop in hops if "gateway" in hop
            }
    assert set(network.gateways()) == expected


NETWORK = """
link add hv0 address 00:15:5d:01:02:03 type veth peer name far
link add hv1 address 00:15:5d:01:02:03 type veth
link set far up
link set hv0 up
address add 192.0.2.7/24 dev hv0
address add 198.51.100.1/30 dev hv0 valid_lft 3600 preferred_lft 1800
address add 2001:db8::7/64 dev hv0 nodad
route add default via 192.0.2.1 dev hv0
route add default metric 900 nexthop via 192.0.2.2 dev hv0 nexthop via 192.0.2.3 dev hv0
-6 route add default via 2001:db8::1 dev hv0
route add 203.0.113.0/24 via 192.0.2.9 dev hv0
route add default via 192.0.2.8 dev hv0 table 100
"""
ASK = """
import dataclasses, json, sys
from hvring.guest import network
print(json.dumps(dataclasses.asdict(network.ip_info(sys.argv[1]))))
"""


@pytest.mark.root
def test_an_adapter_is_described_as_linux_describes_it(iproute: Any, tmp_path: Path) -> None:
    script = "\n".join(f"ip {line} || exit 77" for line in NETWORK.strip().splitlines())
    asking = f'PYTHONPATH={ROOT} exec {sys.executable} -c "$0" "$1"'
    command = ["unshare", "--net", "sh", "-c", f"{script}\n{asking}", ASK, "00:15:5d:01:02:03"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in (1, 77):
        pytest.skip(f"no network namespace with a veth pair: {done.stderr.strip()}")
    info = json.loads(done.stdout)
    link_local = info["addresses"].split(";")[-1]
    assert link_local.startswith("fe80::")
    assert info["addresses"] == f"192.0.2.7;198.51.100.1;2001:db8::7;{link_local}"
    assert info["subnets"] == "255.255.255.0;255.255.255.252;/64;/64"
    assert info["gateways"] == "192.0.2.1;192.0.2.2;192.0.2.3;2001:db8::1;"
    assert info["family"] == 3
    assert info["dhcp"] is True


@pytest.mark.root
@pytest.mark.parametrize(
    ("address", "route", "dhcp"),
    [
        ("192.0.2.7/24", "default via 192.0.2.1 dev hv0 proto dhcp", True),  # without an end, as on Azure
        ("192.0.2.7/24", "default via 192.0.2.1 dev hv0 proto dhcp table 100", True),
        ("192.0.2.7/24", "default via 192.0.2.1 dev hv0 proto static", False),
        ("192.0.2.7/24", "default via 192.0.2.1 dev hv0 proto boot", False),
        ("192.0.2.7/24", "default via 198.51.100.1 dev far proto dhcp", False),
    ],
)
def test_a_lease_without_an_end_is_known_by_its_route(
    iproute: Any, address: str, route: str, dhcp: bool
) -> None:
    lines = (
        "link add hv0 address 00:15:5d:01:02:03 type veth peer name far",
        "link set far up",
        "link set hv0 up",
        f"address add {address} dev hv0",
        "address add 198.51.100.2/24 dev far",
        "address add 2001:db8::7/64 dev hv0 nodad valid_lft 3600 preferred_lft 3600",
        f"route add {route}",
    )
    script = "\n".join(f"ip {line} || exit 77" for line in lines)
    asking = f'PYTHONPATH={ROOT} exec {sys.executable} -c "$0" "$1"'
    command = ["unshare", "--net", "sh", "-c", f"{script}\n{asking}", ASK, "00:15:5d:01:02:03"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in (1, 77):
        pytest.skip(f"no network namespace with a veth pair: {done.stderr.strip()}")
    assert json.loads(done.stdout)["dhcp"] is dhcp


def route(family: int, protocol: int, index: int) -> tuple[tuple[int, ...], dict[int, bytes]]:
    return (family, 0, 0, 0, 254, protocol, 0, 1, 0), {4: struct.pack("=i", index)}


def test_routes_of_a_dhcp_client_name_their_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    hop = struct.pack("=HBBi", 8, 0, 0, 7)
    several = ((socket.AF_INET, 0, 0, 0, 254, 16, 0, 1, 0), {9: hop})
    dump = [
        route(socket.AF_INET, 16, 2),
        route(socket.AF_INET, 4, 3),
        route(socket.AF_INET6, 16, 4),
        several,
    ]
    monkeypatch.setattr(netlink, "dump", lambda *_: dump)
    assert network.dhcp_interfaces() == {2, 7}


NETWORKD = (
    "# This is private data. Do not parse.\nADDRESS=192.0.2.7\nNETMASK=255.255.255.0\nLIFETIME=infinity\n"
)
DHCLIENT = """default-duid "x";
lease {
  interface "eth0";
  fixed-address 192.0.2.99;
  expire never;
}
lease {
  interface "eth0";
  fixed-address 192.0.2.7;
  option subnet-mask 255.255.255.0;
  expire 2 2160/01/06 00:00:00;
}
lease {
  interface "eth1";
  fixed-address 192.0.2.8;
}
"""


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("run/systemd/netif/leases/2", NETWORKD),
        ("run/NetworkManager/devices/2", "[device]\nmanaged=managed\n[dhcp4]\nip_address=192.0.2.7\n"),
        ("lib/NetworkManager/internal-6b0c-eth0.lease", NETWORKD),
        ("lib/NetworkManager/dhclient-6b0c-eth0.lease", DHCLIENT),
        ("lib/dhcp/dhclient.eth0.leases", DHCLIENT),
        ("lib/dhclient/dhclient--eth0.lease", DHCLIENT),
        ("lib/dhcpcd/eth0.lease", "\2\1\6\0" + 12 * "\0" + "\xc0\0\2\7" + 300 * "\0"),
    ],
)
def test_a_lease_is_known_by_the_files_of_its_client(tmp_path: Path, path: str, content: str) -> None:
    def is_leased(index: int, name: str, *addresses: str) -> bool:
        return leases.is_leased(
            index, name, set(addresses), run=str(tmp_path / "run"), state=str(tmp_path / "lib")
        )

    assert not is_leased(2, "eth0", "192.0.2.7")
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(content, encoding="latin-1")
    assert is_leased(2, "eth0", "198.51.100.1", "192.0.2.7")
    assert not is_leased(2, "eth0", "192.0.2.99")  # an old lease, or an address set by hand
    assert not is_leased(1, "eth", "192.0.2.7")
    assert not is_leased(3, "eth1", "192.0.2.7")


def test_the_loopback_interface_has_no_addresses_for_the_host() -> None:
    info = network.ip_info(LOOPBACK_MAC)
    assert info is not None
    assert (info.family, info.addresses, info.subnets) == (0, "", "")


def test_an_unknown_adapter_has_no_description() -> None:
    assert network.ip_info("00:15:5D:09:09:09") is None
    assert network.ip_info("") is None


def interface(index: int, mac: str, *addresses: Address) -> Interface:
    return Interface(index, f"eth{index}", mac, False, addresses)


def test_of_two_interfaces_with_one_mac_the_one_with_an_address_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = Address(socket.AF_INET, "192.0.2.1", 24, True)
    mac = "00:15:5D:01:02:03"
    found = (interface(1, mac), interface(2, mac, address))
    monkeypatch.setattr(network, "interfaces", lambda: found)
    monkeypatch.setattr(network, "gateways", lambda: ((1, "192.0.2.8"), (2, "192.0.2.9")))
    monkeypatch.setattr(network, "dhcp_interfaces", lambda: {1})
    info = network.ip_info(mac.lower())
    assert info is not None
    assert (info.addresses, info.gateways, info.family, info.dhcp) == ("192.0.2.1", "192.0.2.9;", 1, False)


def test_lists_are_cut_at_a_whole_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    many = tuple(Address(socket.AF_INET6, f"2001:db8::{n:x}", 64, True) for n in range(0x1000, 0x1200))
    mac = "00:15:5D:01:02:03"
    monkeypatch.setattr(network, "interfaces", lambda: (interface(1, mac, *many),))
    monkeypatch.setattr(network, "gateways", lambda: tuple((1, a.text) for a in many))
    monkeypatch.setattr(network, "dns_servers", lambda: tuple(a.text for a in many))
    info = network.ip_info(mac)
    assert info is not None
    for text, limit in ((info.addresses, 1023), (info.gateways, 511), (info.dns, 1023)):
        assert limit - 16 < len(text) <= limit
        assert all(ipaddress.ip_address(entry) for entry in text.rstrip(";").split(";"))
    assert len(info.addresses.split(";")) == len(info.subnets.split(";"))
    assert info.family == 2


@pytest.mark.parametrize(
    ("prefix", "mask"), [(0, "0.0.0.0"), (1, "128.0.0.0"), (24, "255.255.255.0"), (32, "255.255.255.255")]
)
def test_ipv4_subnets_are_dotted_masks(prefix: int, mask: str) -> None:
    assert Address(socket.AF_INET, "192.0.2.1", prefix, True).subnet == mask


def test_name_servers_behind_a_local_stub_are_found(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("# nameserver 192.0.2.99\nsearch example.test\nnameserver 127.0.0.53\n", encoding="utf-8")
    real.write_text(
        "nameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\n", encoding="utf-8"
    )
    assert network.dns_servers([str(stub), str(real)]) == ("192.0.2.53", "fe80::1")
    assert network.dns_servers([str(stub), str(tmp_path / "missing")]) == ("127.0.0.53",)
    assert network.dns_servers([str(real), str(stub)]) == ("192.0.2.53", "fe80::1")
    assert network.dns_servers([]) == ()


def test_adapters_are_known_by_their_instance_guid(tmp_path: Path) -> None:
    device = tmp_path / "eth0" / "device"
    device.mkdir(parents=True)
    (device / "device_id").write_text("{11111111-2222-3333-4444-55555555abcd}\n", encoding="utf-8")
    (tmp_path / "lo").mkdir()
    for guid in ("{11111111-2222-3333-4444-55555555abcd}", "11111111-2222-3333-4444-55555555ABCD"):
        assert network.adapter_exists(guid, net=str(tmp_path))
    assert not network.adapter_exists("{11111111-2222-3333-4444-555555550000}", net=str(tmp_path))
    assert not network.adapter_exists("{11111111}", net=str(tmp_path / "missing"))


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def test_attributes_are_read_as_far_as_they_make_sense() -> None:
    good = attribute(1, b"abc") + attribute(2 | 0x8000, b"nested") + attribute(1, b"again")
    assert netlink.attributes(good) == {1: b"abc", 2: b"nested"}
    for tail in (b"\x01", struct.pack("=HH", 3, 9), struct.pack("=HH", 400, 9) + b"x"):
        assert netlink.attributes(good + tail) == {1: b"abc", 2: b"nested"}


def test_a_kernel_that_says_no_is_an_effect_error() -> None:
    with pytest.raises(EffectError, match="rtnetlink"):
        netlink.dump(0x7FFE, struct.Struct("=B"))
