# SPDX-License-Identifier: Apache-2.0
"""``hvring run`` on Hyper-V: which services, bound by whom, opened how."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from hvring.agent import Opener
from hvring.errors import HvringError
from hvring.transport.binding import Binder
from hvring.transport.errors import DeviceUnavailableError, NotBoundError
from hvring.transport.sysfs import OPENED, UIO_DRIVER
from hvring.transport.uio import open_channel_async
from hvring.vmbus import SERVICE_NAMES

log = logging.getLogger("hvring.cli")

Tell = Callable[[str, str, str], None]
"""What happened, to which service, in words."""


@contextmanager
def line(
    names: list[str], bind: bool, tell: Tell, binder: Binder | None = None
) -> Iterator[tuple[list[str], Opener]]:
    """The services to serve and how to open them; gives back at the end what it bound itself.

    No ``names``: those that are bound already, or with ``bind`` all that are offered except timesync, because binding
    that takes the kernel's PTP clock away. Raises DeviceError.
    """
    binder = binder or Binder()
    bus = binder.bus
    offered = {device.service: device for device in bus.devices() if device.service}
    opener = partial(open_channel_async, timeout=None, wait=True, bus=bus)
    if bind:
        names = names or [name for name in SERVICE_NAMES if name in offered and name != "timesync"]
        with _taken(binder, names, tell):
            yield names, lambda name: opener(name, prepare=lambda: binder.bind(name))
        return
    bound = [name for name, device in offered.items() if device.driver == UIO_DRIVER]
    if not names and not bound:
        raise NotBoundError(
            f"no service is bound to {UIO_DRIVER}: bind some (`hvring bind kvp`), or let `hvring run --bind` do it"
        )
    for name in names or bound:
        if name not in offered:
            tell("waiting", name, "the host does not offer it")
        elif name not in bound:
            tell("waiting", name, f"bind it with `hvring bind {name}`, or use --bind")
        elif offered[name].state == OPENED:
            tell("waiting", name, "another program has it open")
    yield names or bound, opener


@contextmanager
def _taken(binder: Binder, names: list[str], tell: Tell) -> Iterator[None]:
    before = set(binder.bound())
    try:
        for name in names:
            try:
                binder.bind(name)
            except DeviceUnavailableError as error:
                tell("waiting", name, str(error))
            else:
                tell("bound", name, "")
        yield
    finally:
        for instance in set(binder.bound()) - before:
            try:
                binder.unbind(instance)
            except HvringError as error:
                log.error("%s", error)
