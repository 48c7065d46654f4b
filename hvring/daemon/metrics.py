# SPDX-License-Identifier: Apache-2.0
"""The numbers of a running agent in Prometheus' text format 0.0.4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]

_HEALTH: Final = ("unknown", "healthy", "critical", "stopped")
_STATES: Final = ("waiting", "open", "stopped")
_COUNTERS: Final = {
    "requests": "Messages from the host.",
    "replies": "Answers to the host.",
    "negotiations": "Negotiations of versions.",
    "silent": "Messages that got no answer.",
    "failed": "Answers with a status other than 0.",
    "short": "Messages that ended before a field that is needed.",
    "malformed": "Messages in which a size or a text cannot be true.",
    "unknown_type": "Messages of a type that the service does not know.",
    "unknown_operation": "Messages with an operation that the service does not know.",
    "anomalies": "Messages with odd headers that do no harm.",
    "effect_errors": "Things asked of this machine that did not work.",
    "events_suppressed": "Events that were held back by rate limits.",
}


def exposition(*snapshots: Mapping[str, Any]) -> str:
    """All of :meth:`hvring.daemon.status.Status.snapshot` that is a number; ends with a line feed.

    Of several agents: a service that two of them have is that of the first.
    """
    page = _Page()
    seen: set[str] = set()
    for snapshot in snapshots:
        _process(page, snapshot)
        if "heartbeat" not in seen:
            _health(page, snapshot["health"])
        for name, one in snapshot["services"].items():
            if name not in seen:
                seen.add(name)
                _service(page, name, one)
    return page.text()


def _process(page: _Page, snapshot: Mapping[str, Any]) -> None:
    process = snapshot["process"]
    agent = process["name"]
    page.gauge("build_info", "The version of hvring that serves.", 1, agent=agent, version=process["version"])
    page.gauge(
        "start_time_seconds", "When the agent started, since 1970.", process["started_at"], agent=agent
    )
    page.gauge(
        "rehearsal", "Whether effects on this machine are only rehearsed.", process["rehearsal"], agent=agent
    )
    page.gauge("ok", "Whether `hvring status` finds nothing wrong.", snapshot["ok"], agent=agent)
    page.gauge("quiet", "Whether file systems may be frozen now.", snapshot["quiet"], agent=agent)


def _health(page: _Page, health: Mapping[str, Any] | None) -> None:
    if health is None:
        return
    help_text = "How applications are, as the host is told: 1 for the state that holds."
    for state in _HEALTH:
        page.gauge("health", help_text, health.get("state") == state, state=state)


def _service(page: _Page, name: str, one: Mapping[str, Any]) -> None:
    for state in _STATES:
        page.gauge(
            "service_state", "1 for the state that holds.", one["state"] == state, service=name, state=state
        )
    page.gauge(
        "service_info",
        "How a service is served, and by which versions.",
        1,
        service=name,
        way=one["way"] or "",
        framework=one["framework"] or "",
        version=one["version"] or "",
        kernel=one["kernel"] or "",
    )
    page.counter("channel_openings", "How often the channel was opened.", one["openings"], service=name)
    if one["last_request_age"] is not None:
        page.gauge(
            "last_request_age_seconds", "Since the host asked last.", one["last_request_age"], service=name
        )
    if one["last_error_at"] is not None:
        page.gauge(
            "last_error_time_seconds",
            "When something failed last, since 1970.",
            one["last_error_at"],
            service=name,
        )
    wrong = one["last_error"] is not None and one["last_error_over_at"] is None
    page.gauge("failing", "Whether what failed last has not worked since.", wrong, service=name)
    for counter, value in one["counters"].items():
        says = _COUNTERS.get(counter, "A counter of the service.")
        page.counter(f"service_{counter}", says, value, service=name)
    for reason, value in one["failures"].items():
        says = "What did not work or was refused, by reason (`hvring status` has the remedies)."
        page.counter("service_failures", says, value, service=name, reason=reason)
    way = one["way"] or ""
    for counter, value in one["channel"].items():
        if counter.endswith("_ns"):
            counter, value = f"{counter.removesuffix('_ns')}_seconds", value / 1e9
        says = "Of the channel that is open, or was last."
        page.counter(f"ring_{counter}", says, value, service=name, way=way)
    _backup(page, name, one)
    _others(page, one)


def _backup(page: _Page, name: str, one: Mapping[str, Any]) -> None:
    if "seconds_frozen" not in one:
        return
    page.gauge("vss_frozen", "Whether file systems are frozen.", one["frozen_for"] is not None)
    page.gauge(
        "vss_frozen_for_seconds", "How long they have been; 0 if they are not.", one["frozen_for"] or 0.0
    )
    page.counter("vss_frozen_seconds", "How long file systems were frozen, in all.", one["seconds_frozen"])
    for hook, tally in one.get("hooks", {}).items():
        page.counter("vss_hook_backups", "Backups in which this hook was run.", tally["backups"], hook=hook)
        page.counter("vss_hook_failures", "What this hook did not do as asked.", tally["failures"], hook=hook)
        page.gauge(
            "vss_hook_freeze_seconds", "Of the newest backup: until it held.", tally["seconds"], hook=hook
        )
    for reason, value in one["failures"].items():
        page.counter(
            "vss_freeze_failures", "Backups that failed, by reason.", value, service=name, reason=reason
        )


def _others(page: _Page, one: Mapping[str, Any]) -> None:
    if "copies" in one:
        page.counter("fcopy_files", "Files that were copied to this machine.", one["copies"])
        page.counter("fcopy_bytes", "Bytes of these files.", one["copied_bytes"])
    time = one.get("time")
    if time is not None:
        page.counter("clock_pauses", "How often this machine was seen to have stood still.", time["pauses"])
        page.counter("clock_samples_fed", "Samples that who keeps the clock was given.", time["fed"])
        page.counter("clock_samples_held_back", "Samples that were not fit for that.", time["held_back"])
    clock = one.get("clock")
    if clock is not None:
        page.gauge("clock_offset_seconds", "The host's clock minus this one.", clock["offset"])
        page.gauge("clock_uncertainty_seconds", "By how much that may be wrong.", clock["uncertainty"])
        page.gauge("clock_sample_age_seconds", "Since the host said its time.", clock["age"])
        page.gauge("clock_leap", "The host's leap indicator, as of NTP; 3: nobody keeps it.", clock["leap"])
        page.gauge("clock_stratum", "The host's stratum, as of NTP; 0: not told.", clock["stratum"])
    if time is not None and time["bias_ns"] is not None:
        page.gauge("clock_bias_seconds", "The middle of the newest offsets.", time["bias_ns"] / 1e9)


class _Page:
    """Samples of one name stand together, each name with its help and its type once."""

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}

    def gauge(self, name: str, says: str, value: float, **labels: str) -> None:
        self._add(f"hvring_{name}", "gauge", says, value, labels)

    def counter(self, name: str, says: str, value: float, **labels: str) -> None:
        self._add(f"hvring_{name}_total", "counter", says, value, labels)

    def text(self) -> str:
        return "".join(f"{line}\n" for family in self._families.values() for line in family)

    def _add(self, name: str, kind: str, says: str, value: float, labels: Labels) -> None:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = [f"# HELP {name} {_help(says)}", f"# TYPE {name} {kind}"]
        inside = ",".join(f'{key}="{escaped(text)}"' for key, text in labels.items())
        family.append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")


def escaped(text: str) -> str:
    """The value of a label, whoever wrote it: nothing in it ends it or its line, and it is UTF-8."""
    whole = text.encode("utf-8", "backslashreplace").decode()
    return whole.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    """As every parser of the format reads it, and exactly."""
    if isinstance(value, bool):
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)
