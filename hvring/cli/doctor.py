# SPDX-License-Identifier: Apache-2.0
"""``hvring doctor``: is this machine fit to serve Hyper-V from user space, and what is to be done."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from hvring.cli import COMMANDS, bus, time_agents
from hvring.cli.agent_findings import examine_agents
from hvring.cli.findings import Finding, Level, absent, examine, stale_pools
from hvring.cli.time_findings import examine_time
from hvring.guest.pool import DIRECTORY
from hvring.guest.pool_owner import PoolOwner
from hvring.transport import kernels

FINE, TO_DO, NOT_HYPERV = 0, 1, 3


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "doctor",
        help=COMMANDS["doctor"],
        description="Looks, and changes nothing. Exit status: 0 all is well, 1 something is to be done, 3 this is no "
        "Hyper-V guest.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON array")
    bus.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The exit status says whether anything is to be done."""
    here = bus.bus(args)
    if not here.present:
        finding = absent(here)
        _print([finding], args.json)
        return TO_DO if finding.level is Level.TODO else NOT_HYPERV
    kernel = kernels.running()
    findings = [
        *examine(here, kernel, bus.binder(args).bound()),
        *stale_pools(PoolOwner(DIRECTORY)),
        *examine_agents(),
        *examine_time(here, kernel, ours=time_agents.agents()),
    ]
    _print(findings, args.json)
    return TO_DO if any(finding.level is Level.TODO for finding in findings) else FINE


def _print(findings: Sequence[Finding], as_json: bool) -> None:
    if as_json:
        rows = [{"level": f.level.value, "topic": f.topic, "text": f.text} for f in findings]
        print(json.dumps(rows, indent=1))
    else:
        print(bus.table((f.level.value, f.topic, f.text) for f in findings))
