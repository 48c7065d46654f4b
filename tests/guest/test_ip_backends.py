# SPDX-License-Identifier: Apache-2.0
"""A host's SET_IP: everything is checked before a file is written, and nothing is written that was not asked for."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvring.errors import EffectError
from hvring.guest.ip_backends import netplan, networkd, networkmanager
from hvring.guest.ip_backends.applying import IpSetter
from hvring.guest.ip_backends.order import Adapter, BadSettingsError, find_adapter, order
from hvring.guest.network import IpInfo
from hvring.pending import settle
from hvring.status import Status

GUID = "{5e1f4a3c-0000-4000-8000-00000000abcd}"
ADAPTER = Adapter("eth0", "00:15:5d:01:02:03")
WISH = IpInfo(
    3,
    False,
    "192.0.2.7;2001:db8::7",
    "255.255.255.0;/64",
    "192.0.2.1;fe80::1;",
    "192.0.2.53;2001:db8::53;",
)
BACKENDS = {"networkmanager": networkmanager, "networkd": networkd, "netplan": netplan}


@pytest.fixture
def net(tmp_path: Path) -> str:
    """Adapters as sysfs shows them."""
    for name, guid, mac in (("lo", None, "00:00:00:00:00:00"), ("eth0", GUID, ADAPTER.mac)):
        (tmp_path / "net" / name / "device").mkdir(parents=True)
        (tmp_path / "net" / name / "address").write_text(f"{mac}\n")
        if guid is not None:
            (tmp_path / "net" / name / "device" / "device_id").write_text(f"{guid}\n")
    (tmp_path / "files").mkdir()
    return str(tmp_path / "net")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_settings_are_one_file_of_the_right_mode_and_the_same_again(
    net: str, tmp_path: Path, backend: Any
) -> None:
    setter = IpSetter(backend, tmp_path / "files", net=net)
    for _ in range(2):
        assert setter.set(GUID.upper().strip("{}"), WISH) is None
    (name,) = os.listdir(tmp_path / "files")
    path = tmp_path / "files" / name
    assert stat.S_IMODE(path.stat().st_mode) == BACKENDS[backend].MODE
    text = path.read_text()
    assert "eth0" in name
    for word in ("192.0.2.7/24", "2001:db8::7/64", "192.0.2.1", "fe80::1", "192.0.2.53", "2001:db8::53"):
        assert word in text


@pytest.mark.parametrize("backend", BACKENDS)
def test_dhcp_is_for_ipv4_and_routers_are_listened_to(net: str, tmp_path: Path, backend: Any) -> None:
    IpSetter(backend, tmp_path / "files", net=net).set(GUID, IpInfo(1, True, "", "", "", ""))
    (path,) = (tmp_path / "files").iterdir()
    wanted = {
        "networkmanager": ["[ipv4]\nmethod=auto", "[ipv6]\nmethod=auto"],
        "networkd": ["DHCP=ipv4", "IPv6AcceptRA=yes"],
        "netplan": ["dhcp4: true", "accept-ra: true"],
    }
    assert all(words in path.read_text() for words in wanted[backend])


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"addresses": ""}, "0 addresses with 2 subnets"),
        ({"addresses": "", "subnets": "", "gateways": ""}, "cut this machine off"),
        ({"addresses": "192.0.2.7;nonsense"}, "no address"),
        ({"addresses": "192.0.2.7;fe80::1%eth0"}, "no address"),
        ({"addresses": "127.0.0.1;2001:db8::7"}, "can be no address"),
        ({"addresses": "224.0.0.1;2001:db8::7"}, "can be no address"),
        ({"addresses": "0.0.0.0;2001:db8::7"}, "can be no address"),
        ({"addresses": "192.0.2.0;2001:db8::7"}, "network's own"),
        ({"addresses": "192.0.2.255;2001:db8::7"}, "network's own"),
        ({"addresses": "192.0.2.7;192.0.2.7", "subnets": "255.255.255.0;24"}, "comes twice"),
        ({"addresses": "1.2.3.4\n[Match];2001:db8::7"}, "no address"),
        ({"subnets": "0.0.0.255;/64"}, "no subnet"),
        ({"subnets": "255.0.255.0;/64"}, "no subnet"),
        ({"subnets": "255.255.255.0;255.255.255.0"}, "no subnet"),
        ({"subnets": "33;/64"}, "no subnet"),
        ({"subnets": "0;/64"}, "no subnet"),
        ({"subnets": "255.255.255.0;/129"}, "no subnet"),
        ({"gateways": "192.0.2.7"}, "is this machine"),
        ({"gateways": ";".join(f"192.0.2.{n}" for n in range(10, 16))}, "6 gateways of IPv4"),
        ({"gateways": "192.0.2.1;192.0.2.1"}, "comes twice"),
        ({"addresses": "2001:db8::7", "subnets": "64", "gateways": "192.0.2.1"}, "without an IPv4 address"),
        ({"dns": "0.0.0.0"}, "can be no name server"),
        ({"dns": ";".join(f"10.0.0.{n}" for n in range(1, 67))}, "66 name servers"),
        ({"dns": ";".join(["10.0.0.1"] * 500)}, "500 dns"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_makes_no_sense_is_refused_as_a_whole_and_the_old_file_stays(
    net: str, tmp_path: Path, wish: dict[str, str], says: str, backend: Any
) -> None:
    setter = IpSetter(backend, tmp_path / "files", net=net)
    setter.set(GUID, WISH)
    (path,) = (tmp_path / "files").iterdir()
    before = path.read_bytes()
    fields = {"addresses": WISH.addresses, "subnets": WISH.subnets, "gateways": "", "dns": ""}
    with pytest.raises(BadSettingsError, match=says) as raised:
        setter.set(GUID, IpInfo(3, False, **{**fields, **wish}))
    assert raised.value.status == Status.INVALID_ARG
    assert [one.read_bytes() for one in (tmp_path / "files").iterdir()] == [before]


@settings(max_examples=300)
@given(
    lists=st.tuples(*[st.text("0123456789abcdef.:;/% \n\"'[]#=", max_size=40)] * 4),
    family=st.integers(0, 255),
    dhcp=st.booleans(),
)
def test_whatever_a_host_sends_is_refused_or_a_file_without_its_own_letters(
    lists: tuple[str, str, str, str], family: int, dhcp: bool
) -> None:
    try:
        wanted = order(ADAPTER, IpInfo(family, dhcp, *lists))
    except BadSettingsError:
        return
    for backend in BACKENDS.values():
        assert backend.text(wanted).isascii()
        plain = order(ADAPTER, IpInfo(0, True, "", "", "", ""))
        # Nothing but addresses is added to what is there without them.
        extra = set(backend.text(wanted)) - set(backend.text(plain))
        assert extra <= set('0123456789abcdef.:/,-;"GatewayDNS=[Route]dnsMtic \nvimlub')


def test_the_adapter_must_be_there_and_be_one_that_a_file_can_name(net: str, tmp_path: Path) -> None:
    assert find_adapter(GUID, net=net) == ADAPTER
    setter = IpSetter("netplan", tmp_path / "files", net=net)
    with pytest.raises(EffectError, match="no adapter") as raised:
        setter.set("{00000000-0000-0000-0000-000000000000}", WISH)
    assert raised.value.status == Status.NOT_FOUND
    for name, mac in (("et h;0", ADAPTER.mac), ('e"0', ADAPTER.mac), ("eth9", "00:15"), ("eth9", "x\ny")):
        os.rename(Path(net) / "eth0", Path(net) / name)
        (Path(net) / name / "address").write_text(mac)
        with pytest.raises(BadSettingsError, match="no file can name"):
            setter.set(GUID, WISH)
        os.rename(Path(net) / name, Path(net) / "eth0")
    assert os.listdir(tmp_path / "files") == []
    assert find_adapter("", net="/nowhere") is None


def test_a_directory_that_cannot_be_written_is_the_hosts_answer(net: str, tmp_path: Path) -> None:
    with pytest.raises(EffectError, match="No such file"):
        IpSetter("networkd", tmp_path / "missing", net=net).set(GUID, WISH)


def test_a_program_makes_it_count_and_its_failure_is_told(net: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def setter(program: str, timeout: float = 60.0) -> IpSetter:
        words = [sys.executable, "-c", program]
        return IpSetter("netplan", tmp_path / "files", words, net=net, timeout=timeout)

    assert settle(setter(f"open({str(mark)!r}, 'w')").set(GUID, WISH)) is None
    assert mark.exists()
    with pytest.raises(EffectError, match="exit status 3 it failed"):
        settle(setter("import sys; print('it failed', file=sys.stderr); sys.exit(3)").set(GUID, WISH))
    with pytest.raises(EffectError, match="did not end in time"):
        settle(setter("input() if False else __import__('time').sleep(1000)", 0.2).set(GUID, WISH))
    pending = setter("__import__('time').sleep(1000)").set(GUID, WISH)
    assert pending is not None
    pending.cancel()
    with pytest.raises(EffectError, match="no-such-program: not found"):
        IpSetter("netplan", tmp_path / "files", ["no-such-program"], net=net).set(GUID, WISH)


@pytest.mark.parametrize("text", ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:224.0.0.1"])
def test_an_address_of_ipv4_in_the_clothes_of_ipv6_is_none(text: str) -> None:
    adapter = Adapter("eth0", "00:15:5d:00:00:01")
    for wish in (
        IpInfo(1, False, text, "120", "", ""),
        IpInfo(1, False, "fd00::1", "64", text, ""),
        IpInfo(1, False, "fd00::1", "64", "", text),
    ):
        with pytest.raises(BadSettingsError):
            order(adapter, wish)
