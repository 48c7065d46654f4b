# SPDX-License-Identifier: Apache-2.0
"""A host reads and changes an adapter's IP settings, in the text form and in the binary one."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from hvring.agent import Agent, Effects, KvpSettings, Settings, standard_services
from hvring.events import Event
from hvring.guest import network
from hvring.guest.ip_backends import applying
from hvring.guest.ip_backends.applying import IpSetter
from hvring.guest.ip_backends.order import Adapter
from hvring.guest.network import IpInfo
from hvring.guest.pools import PoolStore
from hvring.host import GuestStatusError, VirtualHost
from hvring.ic import KvpIpInfo, KvpOperation
from hvring.pending import Pending
from hvring.status import Status
from hvring.transport.virtual import connect_async

GUID = "{5e1f4a3c-0000-4000-8000-00000000abcd}"
MAC = "00:15:5D:01:02:03"
WISH = KvpIpInfo(
    KvpOperation.SET_IP,
    1,
    GUID,
    3,
    0,
    "192.0.2.7;2001:db8::7",
    "255.255.255.0;/64",
    "192.0.2.1;fe80::1",
    "192.0.2.53;2001:db8::53",
)


class Store(PoolStore):
    """One adapter, as sysfs would show it; what was written counts at once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "pools")
        self._folder = folder
        (folder / "net/eth0/device").mkdir(parents=True)
        (folder / "net/eth0/device/device_id").write_text(GUID)
        (folder / "net/eth0/address").write_text(MAC.lower())
        (folder / "files").mkdir()
        self.info = IpInfo(1, True, "198.51.100.7", "255.255.255.128", "198.51.100.1;", "")

    def adapter(self, guid: str) -> bool:
        return guid == GUID

    def set_ip(self, guid: str, wish: IpInfo) -> Pending[None] | None:
        done = IpSetter("networkd", self._folder / "files", net=str(self._folder / "net")).set(guid, wish)
        self.info = wish
        return done

    def ip_info(self, mac: str) -> IpInfo | None:
        return self.info if mac == MAC else None


@pytest.mark.parametrize("binary", [False, True])
def test_what_the_host_sets_is_written_and_read_back(tmp_path: Path, binary: bool) -> None:
    async def main() -> None:
        store, events = Store(tmp_path), list[Event]()
        settings = Settings(kvp=KvpSettings(tmp_path / "pools", binary_ip=binary))
        services = standard_services(settings, ["kvp"], effects=Effects(store=store))
        opener = partial(connect_async, tmp_path / "host.sock", timeout=None, wait=True)
        async with (
            asyncio.timeout(60),
            VirtualHost(tmp_path / "host.sock") as host,
            Agent(services, opener, on_event=events.append),
        ):
            await host.wait_ready("kvp")
            assert host.status()["services"]["kvp"]["version"] == ("5.0" if binary else "4.0")
            before = await host.kvp.get_ip(MAC)
            assert (before.adapter, before.addresses, before.dhcp) == (MAC, "198.51.100.7", 1)
            await host.kvp.set_ip(WISH)
            assert "Address=2001:db8::7/64" in (tmp_path / "files/05-hvring-eth0.network").read_text()
            after = await host.kvp.get_ip(MAC)
            for name in ("family", "dhcp", "addresses", "subnets", "gateways", "dns"):
                assert getattr(after, name) == getattr(WISH, name)
            (event,) = [event for event in events if event.kind.value == "changed"]
            assert event.facts["addresses"] == WISH.addresses
            await host.kvp.set("k", "v")  # the other verbs are the same in 5.0
            assert await host.kvp.get("k") == "v"
            for adapter, wish, status in (
                ("{0}", {}, Status.NOT_FOUND),
                (GUID, {"gateways": "192.0.2.7"}, Status.INVALID_ARG),
            ):
                with pytest.raises(GuestStatusError) as raised:
                    await host.kvp.set_ip(KvpIpInfo(**{**as_dict(WISH), **wish, "adapter": adapter}))
                assert raised.value.status == status
            with pytest.raises(GuestStatusError):
                await host.kvp.get_ip("00:15:5D:00:00:00")
            assert host.violations == []

    asyncio.run(main())


def as_dict(info: KvpIpInfo) -> dict[str, object]:
    return {name: getattr(info, name) for name in info.__slots__}


def test_without_a_word_in_the_settings_nothing_is_changed(tmp_path: Path) -> None:
    class Refusing(Store):
        set_ip = PoolStore.set_ip

    async def main() -> None:
        services = standard_services(Settings(), ["kvp"], effects=Effects(store=Refusing(tmp_path)))
        opener = partial(connect_async, tmp_path / "host.sock", timeout=None, wait=True)
        async with asyncio.timeout(60), VirtualHost(tmp_path / "host.sock") as host, Agent(services, opener):
            await host.wait_ready("kvp")
            with pytest.raises(GuestStatusError) as raised:
                await host.kvp.set_ip(WISH)
            assert raised.value.status == Status.NOT_SUPPORTED
            assert list((tmp_path / "files").iterdir()) == []

    asyncio.run(main())


@pytest.mark.parametrize("real", [False, True])
def test_the_settings_reach_the_file_and_a_rehearsal_writes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: bool
) -> None:
    settings = Settings(
        real=real,
        kvp=KvpSettings(
            tmp_path / "pools", set_ip="netplan", set_ip_directory=tmp_path, set_ip_apply=["true"]
        ),
    )
    monkeypatch.setattr(applying, "find_adapter", lambda guid, net: Adapter("eth0", MAC.lower()))
    monkeypatch.setattr(network, "adapter_exists", lambda guid: True)

    async def main() -> None:
        opener = partial(connect_async, tmp_path / "host.sock", timeout=None, wait=True)
        async with (
            asyncio.timeout(60),
            VirtualHost(tmp_path / "host.sock") as host,
            Agent(standard_services(settings, ["kvp"]), opener),
        ):
            await host.wait_ready("kvp")
            await host.kvp.set_ip(WISH)

    asyncio.run(main())
    assert (tmp_path / "99-hvring-eth0.yaml").exists() is real
