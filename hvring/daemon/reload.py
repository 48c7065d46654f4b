# SPDX-License-Identifier: Apache-2.0
"""A configuration read anew while an agent serves: what can be applied is, and what cannot keeps its old value."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from hvring.agent.agent import Agent
from hvring.daemon.settings import Configuration, part, replaced
from hvring.errors import HvringError
from hvring.events import Event, EventKind
from hvring.services import IntegrationService, Service

Apply = Callable[[Any], None]
"""Goes on with the new settings of a section; raises HvringError or ValueError, and then goes on with the old ones."""

Remake = Callable[[Configuration, Iterable[str]], Collection[Service]]
"""The named services, made anew by a configuration."""

_OF_SERVICES: Final = ("shutdown", "timesync", "heartbeat", "kvp", "vss", "fcopy")


class Reloader:
    """Holds the ``configuration`` that is in force, and puts another one in its place, section by section."""

    def __init__(
        self,
        agent: Agent,
        configuration: Configuration,
        read: Callable[[], Configuration],
        remake: Remake,
        tell: Callable[[Event], None],
    ) -> None:
        """``read``: raises HvringError for a configuration that cannot be used."""
        self.configuration = configuration
        self._agent = agent
        self._read = read
        self._remake = remake
        self._tell = tell
        self._appliers: dict[str, Apply] = {}
        self._is_due = False

    def applies(self, section: str, apply: Apply) -> None:
        """What to call when a knob of this section changed; a section without needs a restart."""
        self._appliers[section] = apply

    def calm(self) -> None:
        """What was frozen is thawed: do what was put off."""
        if self._is_due:
            self.reload()

    def reload(self) -> list[str]:
        """What changed and what could not be applied, a line each; what is wrong, if the file is."""
        if self._agent.quiet:  # reading a file or a module may wait for a frozen file system
            self._is_due = True
            return ["put off until the thaw: nothing is read while file systems are frozen"]
        self._is_due = False
        from hvring.daemon.config.errors import ConfigError

        try:
            fresh = self._read()
        except ConfigError as error:
            return self._refuse([str(problem) for problem in error.problems])
        except Exception as error:  # whatever it is, the old one stays
            return self._refuse([_told(error)])
        return self._apply(fresh)

    def _refuse(self, problems: list[str]) -> list[str]:
        what = f"the old configuration stays: {'; '.join(problems)}"
        self._tell(Event("agent", EventKind.FAILED, what, {"what": "reload", "problems": len(problems)}))
        return [f"not applied: {problem}" for problem in problems]

    def _apply(self, fresh: Configuration) -> list[str]:
        from hvring.daemon.config import printing, schema

        before, after = schema.values(self.configuration), schema.values(fresh)
        held = self.configuration
        refused: dict[str, str] = {}
        for section in schema.sections():
            if all(before[key] == after[key] for key in before if key[0] == section):
                continue
            try:
                fresh_part = part(fresh, section)
                self._apply_section(section, replaced(held, section, fresh_part))
            except NotImplementedError:
                refused[section] = "this service cannot take other settings: restart the agent"
            except Exception as error:  # what is applied already, and what is not, must be known
                refused[section] = _told(error)
            else:
                held = replaced(held, section, fresh_part)
        self.configuration = held
        changes = {
            f"{section}.{name}": f"{printing.toml(before[section, name])} -> {printing.toml(value)}"
            for (section, name), value in after.items()
            if before[section, name] != value
        }
        applied = {name: text for name, text in changes.items() if name.split(".")[0] not in refused}
        left = {name: text for name, text in changes.items() if name not in applied}
        lines = [f"{name}: {text}" for name, text in applied.items()]
        lines += [
            f"not applied: {name}: {text}: {refused[name.split('.')[0]]}" for name, text in left.items()
        ]
        facts = {"applied": " ".join(applied), "not_applied": " ".join(left)}
        self._tell(
            Event(
                "agent", EventKind.RELOADED, "; ".join(lines) or "nothing changed in the configuration", facts
            )
        )
        return lines

    def _apply_section(self, section: str, fresh: Configuration) -> None:
        """``fresh``: what holds, and this section anew; a rehearsal stays one, whatever the file says now."""
        if section in self._appliers:
            self._appliers[section](part(fresh, section))
        elif section not in _OF_SERVICES:
            raise HvringError("it is read at the start only: restart the agent")
        elif section in self._agent.services:
            service = self._agent.services[section]
            (made,) = self._remake(fresh, [section])
            if not isinstance(service, IntegrationService) or type(made) is not type(service):
                raise NotImplementedError
            service.adopt(made)


def _told(error: Exception) -> str:
    if isinstance(error, HvringError | OSError | ValueError):
        return str(error) or repr(error)
    import logging

    logging.getLogger("hvring.daemon").error("a reload failed", exc_info=error)
    return repr(error)
