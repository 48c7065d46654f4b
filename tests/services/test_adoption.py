# SPDX-License-Identifier: Apache-2.0
"""Other settings for a service that has something under way: who comes after knows of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.files import DirectoryReceiver
from hvring.guest.pools import PoolStore
from hvring.guest.power import Places, PowerAction, ShutdownOrder, SystemPower
from hvring.guest.workers import MOST_STUCK
from hvring.pending import Pending, settle
from hvring.services import Fcopy, Kvp, Shutdown

OFF, RESTART = PowerAction.OFF, PowerAction.RESTART


def power(tmp_path: Path) -> SystemPower:
    places = Places(inhibitors=str(tmp_path))
    return SystemPower({OFF: [["true"]], RESTART: [["true"]]}, ways=("command",), places=places)


@pytest.mark.parametrize("is_early", [False, True])
def test_a_machine_that_goes_down_does_so_after_a_reload(tmp_path: Path, is_early: bool) -> None:
    service = Shutdown(old := power(tmp_path))
    begun = old.act(ShutdownOrder(OFF))
    if is_early:  # the settings are read anew before it is known that it began
        service.adopt(Shutdown(power(tmp_path)))
    if isinstance(begun, Pending):
        settle(begun)
    if not is_early:
        service.adopt(Shutdown(power(tmp_path)))
    assert service._power is not old
    assert "about to power off" in str(service._obstacle(ShutdownOrder(RESTART)))
    assert service._obstacle(ShutdownOrder(OFF)) is None


def test_a_power_of_another_kind_takes_nothing_over(tmp_path: Path) -> None:
    class Own(SystemPower):
        pass

    service = Shutdown(old := power(tmp_path))
    begun = old.act(ShutdownOrder(OFF))
    if isinstance(begun, Pending):
        settle(begun)
    service.adopt(
        Shutdown(Own({RESTART: [["true"]]}, ways=("command",), places=Places(inhibitors=str(tmp_path))))
    )
    assert service._obstacle(ShutdownOrder(RESTART)) is None


def test_processes_for_files_that_hang_count_after_a_reload(tmp_path: Path) -> None:
    receiver = DirectoryReceiver([tmp_path])
    service = Fcopy(receiver)
    stopped = []
    try:
        for number in range(MOST_STUCK):
            incoming = settle(receiver.start(str(tmp_path), f"f{number}"))
            stopped.append(incoming._worker.pid)
            os.kill(stopped[-1], signal.SIGSTOP)
            given_up = incoming.abort()
            assert isinstance(given_up, Pending)
            given_up.cancel()
        service.adopt(Fcopy(DirectoryReceiver([tmp_path])))
        assert service._receiver is not receiver
        with pytest.raises(EffectError, match="processes for files hang"):
            service._receiver.start(str(tmp_path), "g")
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def test_programs_for_ip_settings_are_reaped_after_a_reload(tmp_path: Path) -> None:
    store = PoolStore(tmp_path, set_ip="networkd", set_ip_apply=["true"])
    service = Kvp(store)
    store._ip_left.append(4711)
    service.adopt(Kvp(PoolStore(tmp_path, set_ip="netplan", set_ip_apply=["true"])))
    assert service._store is not store
    assert service._store._ip_left is store._ip_left
