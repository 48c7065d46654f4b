# SPDX-License-Identifier: Apache-2.0
"""``hvring time``: how far this machine's clock is from the host's, where the kernel has time synchronization."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hvring.cli import COMMANDS, bus, time_agents, words
from hvring.cli.agents import add_control, understood
from hvring.errors import EffectError
from hvring.events import printable
from hvring.guest.ptp import STALE_AFTER, NoSamplesError, Reading, hyperv_clocks, read_clock
from hvring.transport.sysfs import OPENED, UIO_DRIVER, Bus, Device, read_number
from hvring.vmbus import BY_NAME

_OF_AGENTS: Final = (
    "mode",
    "bias_ns",
    "delay_known",
    "leap",
    "stratum",
    "pauses",
    "fed",
    "held_back",
    "refusal",
)
_INSTANCE = BY_NAME["timesync"].instance_guid


@dataclass(frozen=True, slots=True)
class Report:
    """One look.  ``quality``: "samples come", "no samples", "unreadable" or "absent"; but for the first ``why``.

    ``age``: seconds since the host's newest message, if one was seen to come; None: not known.
    """

    quality: str
    clock: str | None = None
    reading: Reading | None = None
    why: str = ""
    age: float | None = None
    agent: Mapping[str, Any] = field(default_factory=dict)  # what a running agent said

    def fields(self) -> dict[str, object]:
        """For programs."""
        reading = self.reading
        return {
            "quality": self.quality,
            "clock": self.clock,
            "offset_ns": None if reading is None else reading.offset_ns,
            "uncertainty_ns": None if reading is None else reading.uncertainty_ns,
            "age": self.age,
            "age_at_most": None if reading is None else STALE_AFTER,
            "why": self.why or None,
            **{name: self.agent.get(name) for name in _OF_AGENTS},
        }


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "time",
        help=COMMANDS["time"],
        description="Reads the kernel's PTP clock of Hyper-V, or asks the agent that has timesync; sets nothing. Exit "
        "status: 0 the host's time is known, 1 it is not, and it is said why.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a look, also of one that fails")
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        type=words.seconds,
        help="look again and again, with so long in between, and say how old the host's newest message is",
    )
    add_control(parser)
    parser.add_argument("--sysfs", metavar="DIR", default="/sys", help="default: /sys")
    parser.add_argument("--dev", metavar="DIR", default="/dev", help="default: /dev")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: read."""
    here = bus.bus(args)
    if args.watch is None:
        return _print(look(here, control=args.control), args.json)
    return watch(here, args.watch, args.json, control=args.control)


def watch(
    here: Bus,
    interval: float,
    as_json: bool,
    *,
    control: str | None = None,
    sleep: Callable[[float], object] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> int:
    """A line for each look, until interrupted.  The age is as seen from here: by the interrupts of the channel."""
    taken, came = messages(here), None
    while True:
        now, before = monotonic(), taken
        taken = messages(here)
        if None not in (before, taken) and before != taken:
            came = now
        report = look(here, None if came is None else now - came, control=control)
        with understood():
            line = json.dumps(report.fields()) if as_json else printable(_line(report))
        print(line, flush=True)
        sleep(interval)


def look(here: Bus, age: float | None = None, *, control: str | None = None) -> Report:
    """Read the clock once, or ask an agent where there is none (or that at ``control``), or say why neither can be."""
    clocks = hyperv_clocks(here.sysfs, here.dev)
    if control is not None or not clocks:
        asked = next(iter(time_agents.agents(control)), None)
        if asked is not None:
            return _told(asked)
        why = why_absent(here) if control is None else f"no agent at {control} has timesync"
        return Report("absent", why=why)
    node = clocks[0].node
    try:
        return Report("samples come", node, read_clock(node), age=age)
    except NoSamplesError as problem:
        text = f"{problem}: see the VM's settings (integration services, time synchronization), or `hvring doctor`"
        return Report("no samples", node, why=text, age=age)
    except EffectError as problem:
        text = str(problem) if os.geteuid() == 0 else f"{problem}; as a rule only root may read it"
        return Report("unreadable", node, why=text, age=age)


def _told(asked: time_agents.AgentTime) -> Report:
    """As an agent measured it."""
    facts = asked.facts
    offset, uncertainty, age = facts.get("offset_ns"), facts.get("uncertainty_ns"), facts.get("age")
    if not isinstance(offset, int) or not isinstance(uncertainty, int) or not isinstance(age, int | float):
        return Report(
            "no samples", asked.path, why="the host has not told the agent the time yet", agent=facts
        )
    reading = Reading(offset, uncertainty)
    quality = "samples come" if age <= STALE_AFTER else "no samples"
    return Report(quality, asked.path, reading, age=age, agent=facts)


def why_absent(here: Bus) -> str:
    """There is no PTP clock of Hyper-V: why, and what to do."""
    if not here.present:
        return "this is no Hyper-V guest: there is no VMBus, and no clock of a host"
    device = here.read(_INSTANCE)
    if device is None:
        return "the host does not offer timesync: switch it on in the VM's settings (integration services)"
    if device.driver == UIO_DRIVER:
        return _bound(device)
    if device.driver is None:
        return "no driver has timesync: `modprobe hv_utils`, or see `hvring devices`"
    return (
        f"{device.driver} has timesync, but made no PTP clock: `modprobe ptp`, then load {device.driver} anew; the "
        "kernel needs CONFIG_PTP_1588_CLOCK"
    )


def messages(here: Bus) -> int | None:
    """How often the host interrupted this machine for timesync; None where the kernel does not say."""
    device = here.read(_INSTANCE) if here.present else None
    if device is None or device.relid is None:
        return None
    return read_number(f"{here.path(_INSTANCE)}/channels/{device.relid}/interrupts")


def _bound(device: Device) -> str:
    who = (
        "which measures by itself (`hvring run timesync --json`)"
        if device.state == OPENED
        else "and not served"
    )
    return (
        f"timesync is bound to {UIO_DRIVER}, {who}, and the kernel has no clock of it meanwhile: "
        "`hvring unbind timesync` gives it back"
    )


def _print(report: Report, as_json: bool) -> int:
    if as_json:
        print(json.dumps(report.fields()))
    elif report.reading is None:
        print(f"hvring time: {printable(report.why)}", file=sys.stderr)
    else:
        with understood():
            rows = _rows(report, report.reading)
        print(bus.table(rows))
    return 1 if report.reading is None else 0


def _rows(report: Report, reading: Reading) -> list[tuple[str | None, ...]]:
    ahead = "ahead of" if reading.offset_ns >= 0 else "behind"
    if report.agent:
        return _rows_of_agent(report, reading, ahead)
    return [
        ("clock", f"{report.clock}, the kernel's"),
        ("offset", f"{reading.offset_ns / 1e9:+.9f} s: the host is {ahead} this machine"),
        ("uncertainty", f"{reading.uncertainty_ns / 1e9:.9f} s either way, of the reading"),
        (
            "age",
            f"the host's newest message is at most {STALE_AFTER:g} s old; `--watch 1` sees when one comes",
        ),
        ("quality", report.quality),
    ]


def _rows_of_agent(report: Report, reading: Reading, ahead: str) -> list[tuple[str | None, ...]]:
    facts = report.agent
    sides = "either way" if facts.get("delay_known") else "that the host may be further ahead"
    rows: list[tuple[str | None, ...]] = [
        ("clock", f"{report.clock}, an agent's"),
        ("mode", str(facts.get("mode"))),
        ("offset", f"{reading.offset_ns / 1e9:+.9f} s: the host is {ahead} this machine"),
        ("uncertainty", f"{reading.uncertainty_ns / 1e9:.9f} s {sides}"),
        ("bias", f"{(facts.get('bias_ns') or 0) / 1e9:+.9f} s, the middle of the newest messages"),
        ("age", f"{report.age:.1f} s"),
        ("leap", f"{facts.get('leap')}, stratum {facts.get('stratum')}, as the host says"),
        ("pauses", f"{facts.get('pauses')} seen"),
    ]
    if facts.get("mode") == "feed":
        rows.append(("fed", f"{facts.get('fed')} samples, {facts.get('held_back')} held back"))
    if facts.get("refusal"):
        rows.append(("not used", str(facts.get("refusal"))))
    return [*((name, printable(text or "")) for name, text in rows), ("quality", report.quality)]


def _line(report: Report) -> str:
    if report.reading is None:
        return f"{report.quality}: {report.why}"
    seen = "not seen yet" if report.age is None else f"{report.age:.0f} s ago"
    reading = report.reading
    return f"{reading.offset_ns / 1e9:+.9f} s  +-{reading.uncertainty_ns / 1e9:.9f} s  newest message {seen}"
