# SPDX-License-Identifier: Apache-2.0
"""Powering off, restarting and hibernating by logind (org.freedesktop.login1), over D-Bus."""

from __future__ import annotations

import os
from typing import Final

from hvring.errors import EffectError
from hvring.guest.dbus import Bus, BusError, DBusAddress
from hvring.guest.power import Begun, PowerAction, ShutdownOrder
from hvring.guest.power_ways import WHO, WHY
from hvring.pending import Steps
from hvring.reasons import Reason

MANAGER: Final = DBusAddress(
    "/org/freedesktop/login1", "org.freedesktop.login1", "org.freedesktop.login1.Manager"
)
_METHODS: Final = {
    PowerAction.OFF: "PowerOff",
    PowerAction.RESTART: "Reboot",
    PowerAction.HIBERNATE: "Hibernate",
}
_ROOT_CHECKS_INHIBITORS: Final = 1 << 0
_SKIP_INHIBITORS: Final = (
    1 << 4
)  # from 257 on, and then polkit is asked for root, too; before, root need not say so
_UNDER_WAY: Final = "org.freedesktop.login1.OperationInProgress"
_REASONS: Final = {
    "BlockedByInhibitorLock": Reason.INHIBITED,
    "AccessDenied": Reason.PERMISSION_DENIED,
    "InteractiveAuthorizationRequired": Reason.PERMISSION_DENIED,
}
_NO_SUCH_METHOD: Final = "org.freedesktop.DBus.Error.UnknownMethod"
_NO_SUCH_FLAG: Final = "org.freedesktop.DBus.Error.InvalidArgs"


def begin(order: ShutdownOrder, path: str, until: float) -> Steps[Begun]:
    """logind has begun it, and a lock of ours holds up what comes next until the result is called.

    EffectError, OSError: it has not.  Locks of others that delay it are logind's to wait for.
    """
    action, sleeps = order.action, order.action is PowerAction.HIBERNATE
    method = _METHODS[action]
    with Bus(path) as bus:
        yield from bus.connect(until)
        (able,) = yield from bus.call(MANAGER, f"Can{method}", "", (), until)
        if able not in ("yes", "challenge"):
            reason = Reason.CANNOT_HIBERNATE if sleeps else Reason.NO_WAY
            raise EffectError(f"logind cannot {action.value} here: {able}", reason=reason)
        what = "sleep" if sleeps else "shutdown"
        (lock,) = yield from bus.call(MANAGER, "Inhibit", "ssss", (what, WHO, WHY, "delay"), until)
        try:
            yield from _order(bus, method, order.force, until)
            if not (yield from bus.get(MANAGER, f"PreparingFor{what.title()}", until)):
                raise EffectError("logind agreed and did not begin", reason=Reason.COMMAND_FAILED)
        except BaseException:
            os.close(lock)
            raise
    return lambda: os.close(lock)


def _order(bus: Bus, method: str, force: bool, until: float) -> Steps[None]:
    flags = (_SKIP_INHIBITORS, 0) if force else (_ROOT_CHECKS_INHIBITORS, 0)
    for flag in flags:
        try:
            yield from bus.call(MANAGER, f"{method}WithFlags", "t", (flag,), until)
        except BusError as error:
            if error.name == _UNDER_WAY:  # by an order before this one, or by somebody else
                return
            if error.name == _NO_SUCH_METHOD:
                break
            if error.name == _NO_SUCH_FLAG and flag:
                continue
            reason = _REASONS.get(error.name.rpartition(".")[2], Reason.COMMAND_FAILED)
            raise EffectError(str(error), reason=reason) from error
        return
    yield from bus.call(MANAGER, method, "b", (False,), until)
