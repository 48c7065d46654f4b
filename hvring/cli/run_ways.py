# SPDX-License-Identifier: Apache-2.0
"""``hvring run`` on Hyper-V: which services, by which way, and what is bound for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from hvring.agent.channel import Opener
from hvring.channel import Channel
from hvring.cli.rebinding import Rebinding, given_back
from hvring.daemon.signals import held_back
from hvring.events import EventKind
from hvring.transport.binding import Binder
from hvring.transport.errors import DeviceError, DeviceUnavailableError, NotBoundError
from hvring.transport.sysfs import UIO_DRIVER, Device
from hvring.transport.utils import UtilsChannel
from hvring.transport.ways import Via, open_channel_async
from hvring.vmbus import BY_NAME, SERVICE_NAMES

Tell = Callable[[str, str, str], None]
"""What happened, to which service, in words."""

_HANDED_OUT: Final = tuple(name for name in SERVICE_NAMES if BY_NAME[name].node)


@contextmanager
def chosen_services(
    names: list[str], bind: bool, via: Via, tell: Tell, binder: Binder | None = None
) -> Iterator[tuple[list[str], Opener]]:
    """The services to serve and how to open them; gives back at the end what it bound itself.

    No ``names``: those that are bound already and those that hv_utils hands out, or with ``bind`` all that are offered
    except those whose binding costs what others may rely on: timesync and the kernel's PTP clock. What stays with the
    kernel is told. Raises DeviceError.
    """
    binder = binder or Binder()
    bus = binder.bus
    offered = {device.service: device for device in bus.devices() if device.service}
    with given_back(binder) as rebinding:
        if bind:
            names = names or [n for n in SERVICE_NAMES if n in offered and not BY_NAME[n].only_if_named]
            bound = _bind(names, via, tell, binder)
            names = [name for name in names if name in bound or BY_NAME[name].node]
        else:
            bound = set()
            names = names or _default(offered, via, tell)

        async def open_channel(name: str) -> Channel | UtilsChannel:
            def tell_of(error: DeviceError) -> None:
                tell(EventKind.WAITING.value, name, str(error))

            prepare = None
            if name in bound or (via is Via.AUTO and BY_NAME[name].node):
                prepare = _binding(name, name in bound, via, rebinding, binder)
            return await open_channel_async(
                name, timeout=None, wait=True, bus=bus, via=via, prepare=prepare, on_wait=tell_of
            )

        yield names, open_channel


def _default(offered: dict[str, Device], via: Via, tell: Tell) -> list[str]:
    """What can be served here without taking anything from the kernel."""
    is_bound = {
        name for name, device in offered.items() if device.driver == UIO_DRIVER and via is not Via.UTILS
    }
    handed_out = () if via is Via.UIO else _HANDED_OUT
    if not is_bound and not any(name in offered for name in handed_out):
        raise NotBoundError(
            f"no service is bound to {UIO_DRIVER}: bind some (`hvring bind kvp`), or let `hvring run --bind` do it"
        )
    names = [name for name in SERVICE_NAMES if name in is_bound or name in handed_out]
    for name in SERVICE_NAMES:
        device = offered.get(name)
        if device is not None and name not in names and device.driver:
            tell("kernel", name, f"{device.driver} answers it; `hvring run --bind` takes what it can")
    return names


def _bind(names: list[str], via: Via, tell: Tell, binder: Binder) -> set[str]:
    """Bind them; those that are, or will be when they come. What cannot be bound stays with the kernel, if it may."""
    bound: set[str] = set()
    refused: DeviceError | None = None
    for name in names:
        try:
            with held_back():
                binder.bind(name)
        except DeviceUnavailableError as error:
            bound.add(name)
            tell(EventKind.WAITING.value, name, str(error))
        except DeviceError as error:
            if via is Via.UIO:
                raise
            refused = error
            tell("utils" if BY_NAME[name].node else "kernel", name, str(error))
        else:
            bound.add(name)
            tell("bound", name, "")
    if refused is not None and not bound and not any(BY_NAME[name].node for name in names):
        raise refused
    return bound


def _binding(
    name: str, is_wanted: bool, via: Via, rebinding: Rebinding, binder: Binder
) -> Callable[[], object]:
    """What to do before each attempt to open: bind what came back, or what nobody else takes."""

    async def bind() -> None:
        if not is_wanted and not binder.is_unclaimed(name):
            return
        try:
            await rebinding.bind(name)
        except DeviceError as error:
            # What this kernel does not give away may come to hv_utils, or be there already.
            has_another_way = via is Via.AUTO and BY_NAME[name].node
            if not error.is_final or not has_another_way:
                raise

    return bind
