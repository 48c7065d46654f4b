# SPDX-License-Identifier: Apache-2.0
"""The table of services, and that everybody goes by it."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from hvring import ic
from hvring.agent import Settings, standard_services
from hvring.host import VirtualHost
from hvring.host.host import _VERBS
from hvring.host.offers import message_type, offer
from hvring.vmbus import BY_CLASS, BY_NAME, SERVICE_NAMES, DeviceFacts


@pytest.mark.parametrize("name", SERVICE_NAMES)
def test_guest_and_host_can_agree_on_what_the_guest_likes_best(name):
    messages = importlib.import_module(f"hvring.ic.{name}")
    offered = offer(name)
    assert messages.FRAMEWORKS[0] in offered.frameworks
    assert messages.VERSIONS[0] in offered.versions
    assert set(messages.VERSIONS) & set(offered.versions)
    assert list(offered.versions) == sorted(offered.versions), "oldest first"


def test_services_of_the_agent_and_verbs_of_the_host_are_those_of_the_table():
    services = standard_services(Settings())
    assert [service.name for service in services] == list(SERVICE_NAMES) == list(_VERBS)
    assert [service.kind for service in services] == [message_type(name) for name in SERVICE_NAMES]
    host = VirtualHost("/nonexistent")
    assert all(isinstance(getattr(host, name), verbs) for name, verbs in _VERBS.items())


def test_names_and_guids_are_all_different():
    facts = BY_NAME.values()
    for field in dataclasses.fields(DeviceFacts):
        if field.name != "ring_size":
            assert len({getattr(one, field.name) for one in facts}) == len(SERVICE_NAMES)
    assert {one.message_type for one in facts} < {int(kind) for kind in ic.MessageType}
    assert {guid: one.name for guid, one in BY_CLASS.items()} == {one.class_guid: one.name for one in facts}


def test_who_has_a_daemon_has_a_device_and_units_for_it():
    for one in BY_NAME.values():
        assert bool(one.node) == bool(one.daemons) == bool(one.units)
    assert [one.name for one in BY_NAME.values() if one.only_if_named] == ["timesync"]
