# SPDX-License-Identifier: Apache-2.0
"""Hooks that are objects of the agent's own process: for embedders, who know what may wait there and what may not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hvring.errors import EffectError, reason_of
from hvring.pending import Pending, Steps, Wait, is_due
from hvring.reasons import Reason


@dataclass(frozen=True, slots=True)
class Backup:
    """``name`` is another one for each backup; ``mounts`` are the mount points that will be frozen, in this order."""

    name: str
    mounts: tuple[str, ...] = ()


class BackupHook(Protocol):
    """What each of an embedder's hooks has.

    A method may return a Pending for what takes its time; it must not wait itself: the host, and all that the agent
    serves, would wait with it.  What prepare() and freeze() raise refuses the backup; each hook of which one was
    called gets exactly one call of thaw() or abort().  From the last freeze() to the end nothing may touch a disk.
    """

    @property
    def name(self) -> str:
        """For people."""
        ...

    def prepare(self, backup: Backup) -> Pending[None] | None: ...

    def freeze(self, backup: Backup) -> Pending[None] | None: ...

    def thaw(self, backup: Backup) -> Pending[None] | None: ...

    def abort(self, backup: Backup) -> Pending[None] | None: ...


class ObjectRun:
    """Those of one backup: :meth:`begin`, and then :meth:`end`, whatever happened."""

    def __init__(self, hooks: Sequence[BackupHook], backup: Backup, timeout: float) -> None:
        """``timeout``: seconds for each call."""
        self._hooks = hooks
        self._backup = backup
        self._timeout = timeout
        self._started: list[BackupHook] = []
        self.complaints: list[tuple[str, EffectError]] = []

    def begin(self) -> Steps[None]:
        """Each is prepared, and then each holds.  EffectError names the one at fault."""
        for phase in ("prepare", "freeze"):
            for hook in self._hooks:
                if hook not in self._started:
                    self._started.append(hook)
                yield from self._call(hook, phase)

    def end(self, word: str) -> Steps[None]:
        """``thaw`` or ``abort``, in reverse order; what goes wrong is in ``complaints``."""
        while self._started:
            hook = self._started.pop()
            try:
                yield from self._call(hook, word)
            except EffectError as error:
                self.complaints.append((f"hook {hook.name}", error))

    def _call(self, hook: BackupHook, phase: str) -> Steps[None]:
        until = time.monotonic() + self._timeout
        try:
            outcome = getattr(hook, phase)(self._backup)
            while isinstance(outcome, Pending):
                if is_due(outcome):
                    outcome = outcome.resume()
                elif time.monotonic() >= until:
                    outcome.cancel()
                    raise EffectError(f"did not end within {self._timeout:g} s", reason=Reason.HOOK_TIMEOUT)
                else:
                    yield Wait(min(until, outcome.at), outcome.descriptor)
        except GeneratorExit:
            if isinstance(outcome, Pending):
                outcome.cancel()
            raise
        except Exception as error:  # it is an embedder's code
            reason = reason_of(error) if isinstance(error, EffectError) else Reason.HOOK_FAILED
            words = f"the hook {hook.name} at {phase}: {str(error) or repr(error)}"
            raise EffectError(words, reason=reason) from error
