# SPDX-License-Identifier: Apache-2.0
"""Debian's packages through apt with lists, cache and status of its own: this machine is not changed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from lab import UnavailableError

RELEASE = "trixie"  # what the lab's own programs come from
SUITES = (RELEASE, "trixie-backports", "bookworm", "bookworm-backports", "testing")
_KEYRINGS = ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")
_SUITE_NAMES = re.compile(
    r"(bookworm|trixie|forky|duke|sid|oldstable|stable|testing|unstable)(-updates|-backports)?"
)


def mirror(apt_directory: Path = Path("/etc/apt")) -> str:
    """The address of a Debian archive: $HVRING_LAB_MIRROR, else what apt is configured with."""
    if given := os.environ.get("HVRING_LAB_MIRROR"):
        return given.rstrip("/")
    files = [apt_directory / "sources.list", *sorted((apt_directory / "sources.list.d").glob("*"))]
    for file in files:
        if not file.is_file():
            continue
        if file.suffix == ".sources":
            sources = _deb822(file.read_text())
        elif file.suffix == ".list":
            sources = _one_line(file.read_text())
        else:
            continue
        for address, suites in sources:
            if not address.startswith("cdrom:") and any(_SUITE_NAMES.fullmatch(s) for s in suites):
                return address.rstrip("/")
    raise UnavailableError("no Debian archive in apt's configuration (set HVRING_LAB_MIRROR to one)")


def _one_line(text: str) -> Iterable[tuple[str, list[str]]]:
    for line in text.splitlines():
        if found := re.match(r"\s*deb\s+(?:\[[^\]]*\]\s*)?(\S+)\s+(\S+)", line):
            yield found[1], [found[2]]


def _deb822(text: str) -> Iterable[tuple[str, list[str]]]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {k.lower(): v.split() for k, v in re.findall(r"^([\w-]+):((?:.|\n[ \t])*)", stanza, re.M)}
        if fields.get("enabled") == ["no"] or "deb" not in fields.get("types", []):
            continue
        for address in fields.get("uris", []):
            yield address, fields.get("suites", [])


def keyring() -> Path:
    """The key ring that Debian's archives are signed with."""
    for name in _KEYRINGS:
        path = Path("/usr/share/keyrings") / name
        if path.is_file():
            return path
    raise UnavailableError("no Debian archive key ring (apt-get install debian-archive-keyring)")


def unpack(packages: Iterable[Path], target: Path) -> None:
    """Unpack package files over ``target``; links to directories stay links."""
    target.mkdir(parents=True, exist_ok=True)
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as deb:
            subprocess.run(
                [
                    "tar",
                    "x",
                    "-C",
                    target,
                    "--keep-directory-symlink",
                    "--no-same-owner",
                    "--no-same-permissions",
                ],
                stdin=deb.stdout,
                check=True,
            )
        if deb.returncode:
            raise subprocess.CalledProcessError(deb.returncode, deb.args)


class Archive:
    """apt on a directory of its own. Errors of the network raise UnavailableError with apt's words."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._sources = directory / "sources.list"

    def update(self) -> None:
        """Fetch the package lists of SUITES (about 40 MB)."""
        signed = f"signed-by={keyring()}"
        address = mirror()
        for part in ("lists/partial", "cache/archives/partial"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        lines = [f"deb [arch=amd64 {signed}] {address} {suite} main" for suite in SUITES]
        lines.append(f"deb-src [{signed}] {address} {RELEASE} main")
        self._sources.write_text("\n".join(lines) + "\n")
        self._apt("apt-get", "update", "--error-on=any")

    def names(self, pattern: str) -> list[str]:
        """Names of the packages that match a regular expression."""
        found = self._apt("apt-cache", "search", "--names-only", pattern)
        return [line.split(" ", 1)[0] for line in found.splitlines()]

    def field(self, package: str, name: str) -> str:
        """A field of the package's record in RELEASE's version, or else the newest; "" without it."""
        record = self._apt("apt-cache", "show", "--no-all-versions", package)
        found = re.search(rf"^{name}: (.*)$", record, re.M)
        return found[1] if found else ""

    def download(self, directory: Path, *packages: str) -> list[Path]:
        """Fetch package files; a name may be ``name=version`` or ``name/suite``. Returns the files."""
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self._apt("apt-get", "download", *packages, cwd=directory)
        except UnavailableError as error:
            raise UnavailableError(
                f"{error} (are the package lists old? --refresh fetches them anew)"
            ) from None
        return sorted(directory.glob("*.deb"))

    def closure(self, *packages: str) -> list[Path]:
        """Fetch packages of RELEASE with all that they depend on, as if nothing were installed."""
        self._apt("apt-get", "-y", "--download-only", "install", *packages)
        return sorted((self.directory / "cache/archives").glob("*.deb"))

    def source(self, directory: Path, package: str, version: str) -> Path:
        """Fetch a source package; returns its .orig tar file."""
        directory.mkdir(parents=True, exist_ok=True)
        self._apt("apt-get", "--download-only", "source", f"{package}={version}", cwd=directory)
        return next(directory.glob(f"{package}_*.orig.tar.*[!c]"))

    def _apt(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        d = self.directory
        options = {
            "Dir::Etc::sourcelist": self._sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::State::Lists": d / "lists",
            "Dir::State::status": d / "status",
            "Dir::Cache": d / "cache",
            "APT::Default-Release": RELEASE,
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Acquire::GzipIndexes": "true",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
        }
        command: list[str] = [tool, "-qq"]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        return _run([*command, *arguments], cwd)


def _run(command: Sequence[str], cwd: Path | None) -> str:
    done = subprocess.run(command, cwd=cwd, env=dict(os.environ, LC_ALL="C"), capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["no reason given"]
        raise UnavailableError(f"{command[0]} {' '.join(command[-2:])}: {errors[0]}")
    return done.stdout
