# SPDX-License-Identifier: Apache-2.0
"""The ten keys of the AUTO pool: who this machine is (PROTOCOL §4.4.4)."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from hvring.errors import EffectError
from hvring.guest import network
from hvring.guest.regular import read_regular

#: What the in-tree daemon reports on behalf of the kernel driver.
INTEGRATION_SERVICES_VERSION: Final = "3.1"
#: The first that is there counts, as os-release(5) says.
OS_RELEASES: Final = ("/etc/os-release", "/usr/lib/os-release")
LEGACY_RELEASES: Final = ("/etc/SuSE-release", "/etc/redhat-release")

#: UTF-16 units of a value that Linux sends at most (PROTOCOL §4.4.2).
_VALUE_UNITS: Final = 1022
_FIRST_RETRY: Final = 5.0  # seconds after a failure: at boot the network may not be there yet
_MAX_AGE: Final = 300.0


def canonical_name(host: str) -> str:
    """The fully qualified name of ``host`` by the resolver; may block for long; raises OSError."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
    except socket.gaierror:  # Linux stops here, but a host may well have IPv6 only
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
    return found[0][3] or host


class DomainName:
    """The fully qualified name, found in the background: asking never waits longer than ``timeout`` seconds.

    Until the resolver has answered, and while it cannot, the name is the plain host name.  What it said is asked again
    after ``max_age`` seconds, a failure sooner: both the host's name and its domain may change while it runs.
    """

    def __init__(
        self,
        resolve: Callable[[str], str] = canonical_name,
        *,
        timeout: float = 0.25,
        max_age: float = _MAX_AGE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolve = resolve
        self._timeout = timeout
        self._max_age = max_age
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._name: str | None = None
        self._search: threading.Thread | None = None
        self._ask_at = 0.0
        self._forget("")

    def get(self) -> str:
        """The best name known now."""
        host = socket.gethostname()
        with self._lock:
            if host != self._host:
                self._forget(host)
            start = self._search is None and self._monotonic() >= self._ask_at
            if start:
                self._search = threading.Thread(
                    target=self._look_up, args=(host,), name="hvring-domain-name", daemon=True
                )
                try:
                    self._search.start()
                except RuntimeError:  # as many threads as this machine allows
                    self._search = None
                    self._ask_at = self._monotonic() + _FIRST_RETRY
            search = self._search
        if start and search is not None:
            search.join(self._timeout)
        with self._lock:
            return self._name or host

    def _forget(self, host: str) -> None:
        self._host = host
        self._name = self._search = None
        self._ask_at = self._monotonic()
        self._retry = _FIRST_RETRY

    def _look_up(self, host: str) -> None:
        try:
            name: str | None = self._resolve(host)
        except (OSError, UnicodeError):
            name = None
        with self._lock:
            if self._search is not threading.current_thread():
                return  # the host has got another name meanwhile
            self._search = None
            if name is None:  # the old one may well be right: a resolver that is away says nothing about it
                wait, self._retry = self._retry, min(2 * self._retry, self._max_age)
            else:
                wait, self._retry, self._name = self._max_age, _FIRST_RETRY, name
            self._ask_at = self._monotonic() + wait


class Identity:
    """The automatic keys of the real system; one look at the machine serves a whole enumeration."""

    def __init__(
        self,
        *,
        domain_name: DomainName | None = None,
        os_releases: Sequence[str] = OS_RELEASES,
        legacy_releases: Sequence[str] = LEGACY_RELEASES,
        max_age: float = 1.0,
    ) -> None:
        self._domain_name = domain_name or DomainName()
        self._os_releases = os_releases
        self._legacy_releases = legacy_releases
        self._max_age = max_age
        self._known: tuple[tuple[str, str], ...] = ()
        self._known_until = 0.0

    def automatic(self) -> tuple[tuple[str, str], ...]:
        """Key and value in Linux's order; a value that cannot be found out is empty."""
        now = time.monotonic()
        if not self._known or now >= self._known_until:
            self._known = self._look()
            self._known_until = now + self._max_age
        return self._known

    def _look(self) -> tuple[tuple[str, str], ...]:
        ipv4, ipv6 = _addresses()
        system = os.uname()
        name, major, minor = self._distribution()
        return (
            ("FullyQualifiedDomainName", self._domain_name.get()),
            ("IntegrationServicesVersion", INTEGRATION_SERVICES_VERSION),
            ("NetworkAddressIPv4", ipv4),
            ("NetworkAddressIPv6", ipv6),
            ("OSBuildNumber", system.release),
            ("OSName", name or system.sysname),
            ("OSMajorVersion", major),
            ("OSMinorVersion", minor),
            ("OSVersion", system.release.partition("-")[0]),
            ("ProcessorArchitecture", system.machine),
        )

    def _distribution(self) -> tuple[str, str, str]:
        """Name, major and minor version."""
        for path in self._os_releases:
            lines = _lines(path)
            if lines is not None:
                fields = parse_os_release(lines)
                return fields.get("NAME", ""), fields.get("VERSION_ID", ""), ""
        for path in self._legacy_releases:
            lines = _lines(path)
            if lines is not None:
                name, major, minor = [*(line.strip() for line in lines[:3]), "", "", ""][:3]
                return name, major, minor
        return "", "", ""


def parse_os_release(lines: Iterable[str]) -> dict[str, str]:
    """The assignments of an os-release file, unquoted as a shell does it (os-release(5)); the last of a name counts."""
    fields: dict[str, str] = {}
    for line in lines:
        name, equals, quoted = line.strip().partition("=")
        if equals and not name.startswith("#"):
            fields[name] = _unquoted(quoted)
    return fields


def _unquoted(text: str) -> str:
    value = quote = ""
    letters = iter(text)
    for letter in letters:
        if letter == "\\" and quote != "'":
            escaped = next(letters, "")
            value += escaped if not quote or escaped in '"$`\\' else letter + escaped
        elif letter == quote:
            quote = ""
        elif letter in "\"'" and not quote:
            quote = letter
        else:
            value += letter
    return value


def _lines(path: str) -> list[str] | None:
    try:
        return read_regular(path).decode(errors="replace").split("\n")
    except OSError:
        return None


def _addresses() -> tuple[str, str]:
    """The non-loopback IPv4 and IPv6 addresses, each as a ";" list."""
    try:
        found = [a for i in network.interfaces() if not i.loopback for a in i.addresses]
    except EffectError:
        return "", ""
    return (
        _list(a.text for a in found if a.family == socket.AF_INET),
        _list(a.text for a in found if a.family == socket.AF_INET6),
    )


def _list(texts: Iterable[str]) -> str:
    joined = ""
    for text in texts:
        longer = f"{joined};{text}" if joined else text
        if len(longer) > _VALUE_UNITS:
            break
        joined = longer
    return joined
