# SPDX-License-Identifier: Apache-2.0
"""The settings of a program that serves: those of the services, and those of the program around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from hvring.agent.settings import DAY, Path, Settings, knob
from hvring.agent.verify import SettingsError, verify
from hvring.errors import EndpointError

_LONGEST_AGE: Final = 366 * DAY
_BYTES: Final = frozenset(map(str, range(256)))

ServiceName = Literal["shutdown", "timesync", "heartbeat", "kvp", "vss", "fcopy"]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Which services, and over what; only read at the start."""

    services: Sequence[ServiceName] = knob(
        (),
        "services to serve; empty: those that are bound or that hv_utils hands out, over a virtual host all",
    )
    virtual: Path | None = knob(None, "the socket of a virtual host to serve; none: Hyper-V")
    bind: bool = knob(False, "take the services from the kernel's driver, and give them back at the end")
    via: Literal["auto", "uio", "utils"] = knob(
        "auto",
        "on Hyper-V: over the rings of uio_hv_generic, over hv_utils' devices, or by what is there",
    )
    stay: float = knob(
        0.0001,
        "seconds for which a service looks for the host's next request before it sleeps, while requests follow one "
        "another closely, as those of a file; 0: never. With one processor it never does",
        least=0,
        most=0.001,
    )
    stay_share: float = knob(
        0.25, "the share of one processor's time that each service may spend on that", above=0, most=1
    )
    rehearse: bool | None = knob(
        None, "only say what would be done to this machine; none: over a virtual host, and only there"
    )

    def __post_init__(self) -> None:
        verify(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Knobs that cannot be as they are beside others, and why."""
        if self.bind and self.via == "utils":
            yield "bind", "takes devices from hv_utils, and via = utils leaves them there: use one"
        if self.bind and self.virtual is not None:
            yield "bind", "takes devices of Hyper-V, and a virtual host has none: use one"

    @property
    def is_real(self) -> bool:
        """Whether effects on this machine are meant."""
        return self.virtual is None if self.rehearse is None else not self.rehearse


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is written on the one stream."""

    form: Literal["auto", "text", "json", "words"] = knob(
        "auto", "text (key=value), json, or words for people; auto: words on a terminal, else text"
    )
    level: Literal["debug", "info", "warning", "error"] = knob("info", "the least that is written")


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """The socket that `hvring status` and others speak to."""

    socket: str = knob(
        "auto",
        "path of the control socket; none: there is none; auto: in /run/hvring, for root where effects are real",
    )
    group: str | None = knob(
        None, "a group whose members may speak to it, too; none: root and this user only"
    )

    def __post_init__(self) -> None:
        verify(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What nobody could connect to, and why."""
        if self.socket not in ("auto", "none") and not self.socket.startswith("/"):
            yield (
                "socket",
                f"{self.socket!r:.100} is neither auto nor none, nor the absolute path of a socket",
            )
        group = self.group or ""
        is_number = group.isascii() and group.isdecimal()
        if is_number and (len(group) > 10 or int(group) >= 2**32 - 1):
            yield "group", f"{group:.20} is the number of no group"


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Numbers for Prometheus, beside those of `hvring metrics`."""

    listen: str | None = knob(
        None, "address and port, as 127.0.0.1:9925, at which they can be fetched; none: nowhere"
    )

    def __post_init__(self) -> None:
        verify(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """An address that is none, and why."""
        if self.listen is None:
            return
        from hvring.daemon.listener import address  # with what serves them, which most do without

        try:
            address(self.listen)
        except EndpointError as error:
            yield "listen", str(error)


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """How the heartbeat says that the applications are: the worst of all that is named; nothing: the host's own word.

    Nothing is looked at unless heartbeats come.
    """

    state: Literal["unknown", "healthy", "critical", "stopped"] | None = knob(
        None, "what is said from the start, until `hvring health set`; none: nothing"
    )
    file: Path | None = knob(None, "a file whose only word is the state")
    units: Sequence[str] = knob((), "units of systemd that must be active")
    urls: Sequence[str] = knob(
        (), "http://ADDRESS:PORT/PATH of servers on this machine that must answer with a status of 2xx"
    )
    fresh: Sequence[str] = knob(
        (), "PATH=SECONDS of files that must have been written within so many seconds"
    )
    interval: float = knob(10.0, "seconds between two looks at each of them", above=0, most=DAY)
    timeout: float = knob(5.0, "seconds after which one that does not answer is critical", above=0, most=DAY)
    bad: int = knob(2, "looks in a row that must be bad before it is said", least=1, most=1000)
    good: int = knob(2, "looks in a row that must be good before that is taken back", least=1, most=1000)

    def __post_init__(self) -> None:
        verify(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Knobs that cannot be meant, and why."""
        for url in self.urls:
            if (problem := _not_local(url)) is not None:
                yield "urls", problem
        for text in self.fresh:
            path, _, seconds = text.rpartition("=")
            if not path.startswith("/") or not seconds.replace(".", "", 1).isdecimal():
                yield "fresh", f"{text!r:.100} is no /PATH=SECONDS"
            elif not 0 < float(seconds) <= _LONGEST_AGE:
                yield "fresh", f"{text!r:.100}: seconds are from above 0 to {_LONGEST_AGE:g}"
        for unit in self.units:
            if "." not in unit or not unit.isprintable() or unit.startswith("-") or "/" in unit:
                yield "units", f"{unit!r:.100} is no unit's name, as nginx.service"

    def ages(self) -> Iterator[tuple[str, float]]:
        """What ``fresh`` means."""
        for text in self.fresh:
            path, _, seconds = text.rpartition("=")
            yield path, float(seconds)


def _not_local(url: str) -> str | None:
    scheme, _, rest = url.partition("://")
    server = rest.partition("/")[0]
    if scheme != "http" or not server or not url.isascii() or not url.isprintable() or " " in url:
        return f"{url!r:.100} is no http://ADDRESS:PORT/PATH"
    host, colon, port = server.rpartition(":") if not server.endswith("]") else (server, "", "")
    host = host if colon else server
    if colon and not (port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
        return f"{url!r:.100} has no port from 1 to 65535"
    if host == "localhost" or host == "[::1]":
        return None
    numbers = host.split(".")
    # With a zero before it, a number is none to some, who then ask a server for that name.
    if len(numbers) == 4 and numbers[0] == "127" and all(n in _BYTES for n in numbers):
        return None
    return f"{url!r:.100} is not on this machine: localhost, 127.0.0.1 or [::1]"


@dataclass(frozen=True, slots=True)
class Configuration:
    """All of it: a section of the file for each, the services' beside them."""

    run: RunSettings = RunSettings()
    log: LogSettings = LogSettings()
    control: ControlSettings = ControlSettings()
    metrics: MetricsSettings = MetricsSettings()
    health: HealthSettings = HealthSettings()
    services: Settings = Settings()


def combined(
    values: Mapping[str, Mapping[str, Any]], words: Mapping[tuple[str, str], Any] | None = None
) -> Configuration:
    """A configuration from knobs by section, with ``words`` by section and knob over them; defaults for the rest.

    SettingsError names each knob that cannot be meant as ``section.knob``.
    """
    merged: dict[str, dict[str, Any]] = {section: dict(given) for section, given in values.items()}
    for (section, name), value in (words or {}).items():
        merged.setdefault(section, {})[name] = value
    found, problems = Configuration(), []
    for section, knobs in merged.items():
        try:
            found = replaced(found, section, type(part(found, section))(**knobs))
        except SettingsError as error:
            problems += [(f"{section}.{knob}", text) for knob, text in error.problems]
    if problems:
        raise SettingsError(problems)
    return found


def part(configuration: Configuration, section: str) -> Any:
    """The settings of a section."""
    owner = configuration if hasattr(configuration, section) else configuration.services
    return getattr(owner, section)


def replaced(configuration: Configuration, section: str, settings: Any) -> Configuration:
    """The same with other settings of a section."""
    if hasattr(configuration, section):
        return replace(configuration, **{section: settings})
    return replace(configuration, services=replace(configuration.services, **{section: settings}))
