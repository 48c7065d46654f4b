# SPDX-License-Identifier: Apache-2.0
"""The ten automatic keys."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from hvring.guest import network
from hvring.guest.identity import OS_RELEASES, DomainName, Identity, parse_os_release

HOST = socket.gethostname()


def domain_name() -> DomainName:
    return DomainName(lambda host: f"{host}.example.test")


def test_the_keys_are_those_of_linux_in_its_order() -> None:
    keys = [key for key, _ in Identity(domain_name=domain_name()).automatic()]
    assert keys == [
        "FullyQualifiedDomainName",
        "IntegrationServicesVersion",
        "NetworkAddressIPv4",
        "NetworkAddressIPv6",
        "OSBuildNumber",
        "OSName",
        "OSMajorVersion",
        "OSMinorVersion",
        "OSVersion",
        "ProcessorArchitecture",
    ]


def test_the_values_come_from_the_system(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text('# comment NAME=no\nNAME="Lab \\"Linux\\""\nVERSION_ID=13\nODD\n', encoding="utf-8")
    found = dict(Identity(domain_name=domain_name(), os_releases=[str(release)]).automatic())
    system = os.uname()
    assert found["FullyQualifiedDomainName"] == f"{HOST}.example.test"
    assert found["IntegrationServicesVersion"] == "3.1"
    assert found["OSBuildNumber"] == system.release
    assert found["OSVersion"] == system.release.split("-")[0]
    assert found["OSName"] == 'Lab "Linux"'
    assert found["OSMajorVersion"] == "13"
    assert found["OSMinorVersion"] == ""
    assert found["ProcessorArchitecture"] == system.machine
    outside = [a for i in network.interfaces() if not i.loopback for a in i.addresses]
    for key, family in (("NetworkAddressIPv4", socket.AF_INET), ("NetworkAddressIPv6", socket.AF_INET6)):
        assert found[key] == ";".join(a.text for a in outside if a.family == family)


def test_legacy_release_files_are_read_where_os_release_is_missing(tmp_path: Path) -> None:
    legacy = tmp_path / "redhat-release"
    legacy.write_text("Old Linux\n7\n3\nmore\n", encoding="utf-8")
    nowhere = str(tmp_path / "nowhere")
    found = dict(
        Identity(
            domain_name=domain_name(), os_releases=[nowhere], legacy_releases=(nowhere, str(legacy))
        ).automatic()
    )
    assert (found["OSName"], found["OSMajorVersion"], found["OSMinorVersion"]) == ("Old Linux", "7", "3")


def test_with_no_release_file_the_system_names_itself(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    found = dict(Identity(domain_name=domain_name(), os_releases=[nowhere], legacy_releases=()).automatic())
    assert (found["OSName"], found["OSMajorVersion"]) == (os.uname().sysname, "")


def test_os_release_values_lose_their_quotes_and_escapes() -> None:
    lines = ["A='x y'\n", 'B="a\\\\b\\$c"\n', "C=a=b\n", "#D=1\n", "E=\n", "F=end\\"]
    assert parse_os_release(lines) == {"A": "x y", "B": "a\\b$c", "C": "a=b", "E": "", "F": "end"}
    lines = [
        'A="Joe\'s"\n',
        "B='no \\escape'\r\n",
        'C="no \\escape"\n',
        "  # D=1\n",
        " E = x\n",
        "A2=a\\ b\n",
        "F=1\n",
        "F=2",
    ]
    assert parse_os_release(lines) == {
        "A": "Joe's",
        "B": "no \\escape",
        "C": "no \\escape",
        "E ": " x",
        "A2": "a b",
        "F": "2",
    }


def test_the_vendors_os_release_counts_where_the_administrator_has_none(tmp_path: Path) -> None:
    vendor = tmp_path / "vendor"
    vendor.write_text('NAME="Image Based"\nVERSION_ID="42"\n', encoding="utf-8")
    found = dict(
        Identity(domain_name=domain_name(), os_releases=[str(tmp_path / "none"), str(vendor)]).automatic()
    )
    assert (found["OSName"], found["OSMajorVersion"]) == ("Image Based", "42")
    assert OS_RELEASES == ("/etc/os-release", "/usr/lib/os-release")


def test_one_look_serves_a_whole_enumeration() -> None:
    looks: list[str] = []

    def resolve(host: str) -> str:
        looks.append(host)
        return host

    identity = Identity(domain_name=DomainName(resolve), max_age=3600)
    first = identity.automatic()
    assert identity.automatic() is first
    fresh = Identity(domain_name=domain_name(), max_age=0)
    assert fresh.automatic() is not fresh.automatic()


def test_a_resolver_that_blocks_holds_nobody_up() -> None:
    go_on = threading.Event()
    answered = threading.Event()

    def resolve(host: str) -> str:
        go_on.wait(60)
        answered.set()
        return f"{host}.example.test"

    name = DomainName(resolve, timeout=0)
    assert name.get() == HOST
    assert name.get() == HOST
    assert not answered.is_set()
    go_on.set()
    assert answered.wait(60)
    while name.get() == HOST:  # the thread is about to store it
        pass
    assert name.get() == f"{HOST}.example.test"


def test_a_failing_resolver_gives_the_host_name_and_no_error_text() -> None:
    calls: list[str] = []

    def resolve(host: str) -> str:
        calls.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    name = DomainName(resolve, timeout=60)
    assert [name.get(), name.get()] == [HOST, HOST]
    assert calls == [HOST]  # it is not asked again at once


def test_a_name_is_asked_for_again_when_it_is_old_and_sooner_after_a_failure() -> None:
    now = [100.0]
    answers: list[str | None] = [None, None, "vm.workgroup", None, "vm.corp.example.test"]
    calls: list[float] = []

    def resolve(_: str) -> str:
        calls.append(now[0])
        answer = answers.pop(0)
        if answer is None:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return answer

    name = DomainName(resolve, timeout=60, max_age=300, monotonic=lambda: now[0])
    seen = []
    for step in (0, 4, 1, 9, 1, 299, 1, 5, 299):
        now[0] += step
        seen.append(name.get())
    assert calls == [100, 105, 115, 415, 420]
    assert seen == [HOST] * 4 + ["vm.workgroup"] * 3 + ["vm.corp.example.test"] * 2


def test_a_new_host_name_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    name = DomainName(lambda host: f"{host}.example.test", timeout=60)
    assert name.get() == f"{HOST}.example.test"
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    assert name.get() == "renamed.example.test"
