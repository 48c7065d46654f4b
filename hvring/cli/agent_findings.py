# SPDX-License-Identifier: Apache-2.0
"""What running agents say is wrong with them, for `hvring doctor`."""

from __future__ import annotations

from collections.abc import Iterator

from hvring.cli.findings import Finding, Level
from hvring.daemon.control.client import ControlClient, NotRunningError, sockets
from hvring.daemon.control.protocol import ControlError
from hvring.events import printable

_PATIENCE = 5.0  # seconds


def examine_agents() -> Iterator[Finding]:
    """A finding for each problem, or one that there is none; nothing where no agent runs."""
    for path in sockets():
        try:
            with ControlClient(path, timeout=_PATIENCE) as client:
                status = client.ask("status")
            problems = status["problems"]
            for problem in problems:
                yield _finding(problem)
            if not problems:
                text = f"The agent at {path} (process {status['process']['pid']}) finds nothing wrong."
                yield Finding(Level.GOOD, "agent", printable(text))
        except NotRunningError:
            continue
        except ControlError as error:
            level = Level.NOTE if error.kind == "refused" else Level.TODO
            yield Finding(level, "agent", f"The agent at {path} cannot be asked: {error}.")
        except (KeyError, TypeError):
            yield Finding(Level.NOTE, "agent", f"The agent at {path} is of another version of hvring.")


def _finding(problem: dict[str, str | None]) -> Finding:
    reason = f" ({problem['reason']})" if problem["reason"] else ""
    remedy = f": {problem['remedy']}" if problem["remedy"] else ""
    # How applications are is theirs to mend.
    level = Level.NOTE if problem["reason"] == "health" else Level.TODO
    return Finding(level, str(problem["service"]), printable(f"{problem['what']}{reason}{remedy}."))
