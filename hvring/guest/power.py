# SPDX-License-Identifier: Apache-2.0
"""Powering off, restarting and hibernating this machine (PROTOCOL §4.1)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final, Protocol

from hvring.errors import EffectError


class PowerAction(Enum):
    """What the host may ask for."""

    OFF = "power off"
    RESTART = "restart"
    HIBERNATE = "hibernate"


@dataclass(frozen=True, slots=True)
class ShutdownOrder:
    """One request of the host: ``timeout`` in seconds, ``reason`` a Windows SHTDN_REASON code."""

    action: PowerAction
    force: bool = False
    reason: int = 0
    timeout: int = 0
    text: str = ""


class Power(Protocol):
    """What the shutdown service needs."""

    def supports(self, action: PowerAction) -> bool:
        """Whether ``act`` can be expected to work for this action."""
        ...

    def act(self, order: ShutdownOrder) -> None:
        """Start the action and return; raise EffectError if it could not be started."""
        ...


#: Tried in this order; a command that is missing or fails gives way to the next one.
COMMANDS: Final[Mapping[PowerAction, Sequence[Sequence[str]]]] = MappingProxyType(
    {
        PowerAction.OFF: (("systemctl", "poweroff"), ("/sbin/poweroff",)),
        PowerAction.RESTART: (("systemctl", "reboot"), ("/sbin/reboot",)),
        PowerAction.HIBERNATE: (("systemctl", "hibernate"), ("/sbin/hyperv-hibernate",)),
    }
)


class SystemPower:
    """Really does it, with the init system's own commands and without a shell."""

    def __init__(
        self,
        commands: Mapping[PowerAction, Sequence[Sequence[str]]] = COMMANDS,
        *,
        sleep_states: str = "/sys/power/state",
        patience: float = 20.0,
    ) -> None:
        self._commands = commands
        self._sleep_states = sleep_states
        self._patience = patience

    def supports(self, action: PowerAction) -> bool:
        """Whether a command is there, and for hibernation whether the kernel offers it."""
        import shutil

        if action is PowerAction.HIBERNATE and not self._kernel_hibernates():
            return False
        return any(shutil.which(command[0]) for command in self._commands[action])

    def act(self, order: ShutdownOrder) -> None:
        """Run the first command that works; they queue the action and return."""
        import subprocess

        failures: list[str] = []
        for command in self._commands[order.action]:
            argv = self._argv(command, order)
            try:
                done = subprocess.run(
                    argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=self._patience, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as problem:
                failures.append(f"{argv[0]}: {problem}")
                continue
            if done.returncode == 0:
                return
            last_words = done.stderr.decode(errors="replace").strip()
            failures.append(f"{argv[0]}: exit status {done.returncode} {last_words}".rstrip())
        raise EffectError(f"cannot {order.action.value}: {'; '.join(failures)}")

    @staticmethod
    def _argv(command: Sequence[str], order: ShutdownOrder) -> list[str]:
        argv = list(command)
        if os.path.basename(command[0]) == "systemctl":
            if order.force:
                argv.append("--ignore-inhibitors")
            # The text came from the host: one argument, no NUL, one line.
            text = " ".join(order.text.replace("\0", " ").split())
            if text and order.action is not PowerAction.HIBERNATE:
                argv.append(f"--message={text}")
        return argv

    def _kernel_hibernates(self) -> bool:
        try:
            with open(self._sleep_states, encoding="utf-8", errors="replace") as states:
                return "disk" in states.read().split()
        except OSError:
            return False


#: What a rehearsal records at most: a host could go on for ever.
_REMEMBERED: Final = 1000


class RehearsedPower:
    """Records the newest orders in ``orders`` and does nothing else."""

    def __init__(self) -> None:
        self.orders: list[ShutdownOrder] = []

    def supports(self, action: PowerAction) -> bool:  # noqa: ARG002
        """Everything can be rehearsed."""
        return True

    def act(self, order: ShutdownOrder) -> None:
        """Record the order."""
        import logging

        self.orders.append(order)
        del self.orders[:-_REMEMBERED]
        logging.getLogger("hvring.guest").info("rehearsal: would %s", order.action.value)
