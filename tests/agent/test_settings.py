# SPDX-License-Identifier: Apache-2.0
"""Settings: each knob has one default, and reaches what it is for."""

from __future__ import annotations

import argparse
import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from hvring.agent import settings as settings_module
from hvring.agent.settings import (
    FcopySettings,
    KvpSettings,
    Settings,
    ShutdownSettings,
    TimeSyncSettings,
    VssSettings,
)
from hvring.agent.standard import standard_services
from hvring.agent.verify import SettingsError
from hvring.cli import run, serving
from hvring.guest.files import DirectoryReceiver
from hvring.guest.freezer import SystemFreezer
from hvring.guest.identity import DomainName
from hvring.guest.pools import PoolStore
from hvring.guest.power import SystemPower
from hvring.ic.hv_utils.dialect import PATIENCE
from hvring.ic.hv_utils.vss import FREEZE_PATIENCE
from hvring.services import Fcopy, Kvp, TimeSync, Vss

# A knob that is called differently where it goes to.
RENAMED = {"allow": "allowed", "pool_directory": "directory", "domain_name_age": "max_age"}


@pytest.mark.parametrize(
    ("settings", "made"),
    [
        (ShutdownSettings(), [SystemPower]),
        (KvpSettings(), [PoolStore, DomainName]),
        (VssSettings(), [SystemFreezer, Vss]),
        (FcopySettings(), [DirectoryReceiver]),
        (TimeSyncSettings(), [TimeSync]),
    ],
)
def test_a_default_is_the_same_with_and_without_settings(
    settings: Any, made: list[Callable[..., Any]]
) -> None:
    compared = set()
    for make in made:
        for name, parameter in inspect.signature(make).parameters.items():
            for field in fields(settings):
                if RENAMED.get(field.name, field.name) == name and name not in compared:
                    compared.add(name)
                    assert getattr(settings, field.name) == parameter.default, name
    # These go to the plan of a freeze, to its hooks, to the service, and to the feed.
    elsewhere = {"exclude", "only", "loops", "on_request", "binary_ip", "feed_to"}
    elsewhere |= {"hooks", "hooks_qemu_ga", "hooks_open_vm_tools", "hooks_timeout", "hooks_total"}
    elsewhere |= {"hooks_entry_points", "hooks_socket", "hooks_socket_group", "hook_objects"}
    elsewhere |= {"publish_errors", "drain", "on_drain", "drain_timeout"}
    assert compared == {RENAMED.get(f.name, f.name) for f in fields(settings)} - elsewhere


def test_the_knobs_of_the_services_reach_what_they_are_for() -> None:
    settings = Settings(
        real=True,
        kvp=KvpSettings("/nowhere", timeout=3.0, max_records=4, domain_name_age=5.0),
        vss=VssSettings(open_timeout=1.0, freeze_timeout=2.0, deadline=6.0, thaw_timeout=4.0, max_frozen=5.0),
        fcopy=FcopySettings(["/nowhere"], owner=(1, 2), timeout=3.0, sync_timeout=4.0),
    )
    kvp, vss, fcopy = standard_services(settings, ["kvp", "vss", "fcopy"])
    assert isinstance(kvp, Kvp)
    store: Any = kvp._store
    assert store._identity._domain_name._max_age == 5.0
    assert {(pool._timeout, pool._max_records) for pool in store.pools} == {(3.0, 4)}
    assert isinstance(vss, Vss)
    hooked: Any = vss._freezer
    assert hooked._timeouts.hold > 6.0 + 4.0  # when the guardian has thawed, whatever happened
    freezer: Any = hooked._freezer
    assert (freezer._thaw_timeout, vss._max_frozen) == (4.0, 5.0)
    assert isinstance(fcopy, Fcopy)
    receiver: Any = fcopy._receiver
    assert (receiver._terms.owner, receiver._timeout, receiver._sync_timeout) == ((1, 2), 3.0, 4.0)


@pytest.mark.parametrize(
    ("knobs", "name"),
    [
        ({"freeze_timeout": 701.0}, "freeze_timeout"),
        ({"hooks_total": 761.0}, "hooks_total"),
        ({"freeze_timeout": 400.0, "hooks_total": 421.0}, "hooks_total"),
        ({"thaw_timeout": 27.5}, "thaw_timeout"),
    ],
)
def test_what_would_last_longer_than_a_host_waits_is_refused(knobs: dict[str, float], name: str) -> None:
    with pytest.raises(SettingsError, match=r"host waits(, which is 27| 870)") as refused:
        VssSettings(**knobs)
    assert [which for which, _ in refused.value.problems] == [name]
    VssSettings(**{knob: value - 1 for knob, value in knobs.items()})


def test_hv_utils_is_given_up_on_when_the_settings_say_that_a_host_does() -> None:
    assert settings_module.HOST_WAITS == FREEZE_PATIENCE
    assert settings_module.THAW_WAITS == PATIENCE


def parsed(*words: str) -> Settings:
    """The settings of a command line."""
    parser = argparse.ArgumentParser()
    run.add_parser(parser.add_subparsers())
    args = parser.parse_args(["run", "--real", "--pool-dir", "/nowhere", "--config", "/dev/null", *words])
    return serving.read_configuration(args.config, run.said_words(args)).services


def test_the_words_of_the_command_line_are_settings() -> None:
    settings = parsed(
        *("--exclude", "/mnt/*", "--only", "/srv", "--loop", "/image", "--max-frozen", "7", "--set-clock"),
        *("--allow", "/in", "--copy-mode", "600", "--copy-owner", "1000:100", "--copy-max-size", "9"),
    )
    assert settings.vss == VssSettings(exclude=["/mnt/*"], only=["/srv"], loops=["/image"], max_frozen=7.0)
    assert settings.fcopy == FcopySettings(["/in"], mode=0o600, owner=(1000, 100), max_size=9)
    assert settings.timesync.mode == "step"
    (timesync,) = standard_services(settings, ["timesync"])
    assert isinstance(timesync, TimeSync)
    assert timesync.mode == "step"


@pytest.mark.parametrize("owner", ["root", "1000", "1000:", ":100", "-1:0", "a:b"])
def test_an_owner_is_two_numbers(owner: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(f"--copy-owner={owner}")
    assert "is no UID:GID such as 1000:1000" in capsys.readouterr().err


def test_what_a_mode_of_time_needs_is_loaded_with_it_only() -> None:
    code = """
import sys
from hvring.agent import Settings, standard_services
from hvring.agent.settings import TimeSyncSettings
for mode in ("observe", "feed", "step"):
    standard_services(Settings(timesync=TimeSyncSettings(mode=mode)), ["timesync"])
    print(mode, *sorted({"hvring.guest.time_feed", "hvring.guest.disciplines", "ctypes"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "observe",
        "feed hvring.guest.time_feed",
        "step hvring.guest.disciplines hvring.guest.time_feed",
    ]


@pytest.mark.parametrize("to", ["sock:chrony", "shm:300", "chrony"])
def test_a_feed_that_cannot_be_is_refused_with_its_mode(to: str) -> None:
    TimeSyncSettings(feed_to=to)
    with pytest.raises(ValueError, match="feed_to: "):
        TimeSyncSettings(mode="feed", feed_to=to)


@pytest.mark.parametrize(("line", "says"), [("", "names no program"), ('drain "now', "No closing quotation")])
def test_a_command_line_that_is_none_is_refused(line: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ShutdownSettings(drain=[line])


def test_what_drains_reaches_the_service_and_not_a_rehearsal() -> None:
    own = ShutdownSettings(drain=["drain 'all of it'"], drain_timeout=7.0, ways=["init"])
    (real,) = standard_services(Settings(real=True, shutdown=own), ["shutdown"])
    service: Any = real
    assert (service._drain._commands, service._patience) == ([["drain", "all of it"]], 7.0)
    assert service._power._ways == ["init"]
    (rehearsed,) = standard_services(Settings(shutdown=own), ["shutdown"])
    service = rehearsed
    assert service._drain is None
    service.adopt(real)
    assert service._patience == 7.0
