# SPDX-License-Identifier: Apache-2.0
"""A backup that cannot be made says why by name, once, and says when it can again."""

from __future__ import annotations

from hvring.events import Event, EventKind
from hvring.ic import MessageType, Status, VssOperation, VssRequest
from hvring.reasons import Obstacle, Reason
from hvring.services import Vss


class UnreadyFreezer:
    frozen = False

    def __init__(self) -> None:
        self.found: Obstacle | None = Obstacle("freezing needs root", Reason.NOT_PRIVILEGED)

    @property
    def ready(self) -> bool:
        return self.found is None

    def obstacle(self) -> Obstacle | None:
        return self.found

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False


def test_who_asks_for_a_backup_that_cannot_be_made_leaves_the_reason(packet, status_of) -> None:
    freezer = UnreadyFreezer()
    service, told = Vss(freezer), list[Event]()
    service.on_event = told.append

    def ask(operation: VssOperation) -> int:
        return status_of(service.receive(packet(MessageType.VSS, VssRequest(operation).encode(), (5, 0))))

    assert ask(VssOperation.HOT_BACKUP) == Status.FAIL
    assert ask(VssOperation.FREEZE) == Status.FAIL
    assert [(event.kind, event.facts["reason"]) for event in told] == [(EventKind.FAILED, "not_privileged")]
    assert service.counters.failures == {"not_privileged": 2}
    assert service.last_failure.reason is Reason.NOT_PRIVILEGED
    assert service.last_failure.over_at is None
    freezer.found = None
    assert ask(VssOperation.FREEZE) == Status.OK
    assert told[1].kind is EventKind.RECOVERED
    assert service.last_failure.over_at is not None
    assert ask(VssOperation.THAW) == Status.OK
