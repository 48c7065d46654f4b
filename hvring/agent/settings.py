# SPDX-License-Identifier: Apache-2.0
"""Every knob of the six services, in one frozen dataclass; the command line builds one, an embedder may."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from hvring.agent.verify import verify
from hvring.guest.hooks.found import HOOKS, KNOBS
from hvring.guest.patterns import mistake
from hvring.guest.pools import DIRECTORY, MAX_RECORDS
from hvring.guest.power import COMMANDS, WAYS, OnDrain, PowerAction, ShutdownOrder, Way
from hvring.guest.terms import Terms
from hvring.ic.heartbeat import ApplicationState
from hvring.ic.vss import NO_AUTO_RECOVERY
from hvring.services.timesync import TimeMode

if TYPE_CHECKING:
    from hvring.guest.hooks.objects import BackupHook

Path = str | os.PathLike[str]

T = TypeVar("T")


#: Seconds for the answer to a FREEZE and to a THAW: the kernel waits for 900 and 30 (PROTOCOL §4.5.2), and the answer
#: is to be there before.  To find a way to start the guardian may take some of the first.
HOST_WAITS: Final = 870.0
THAW_WAITS: Final = 27.0
_STARTING: Final = 50.0
DAY: Final = 86400.0  # seconds; who waits longer than that forgot something
LARGEST: Final = 2**63 - 1  # bytes of a file


def knob(
    default: T,
    says: str,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> T:
    """A setting that administrators have, too: with its words for them it is in the configuration file.

    A field without is for embedders only.  ``above``, ``least``, ``most``: what a number may be, or each of several;
    a class that calls :func:`~hvring.agent.verify.verify` when it is made keeps to that wherever it comes from.
    """
    bounds = {"above": above, "least": least, "most": most}
    return field(
        default=default, metadata={"says": says, **{k: v for k, v in bounds.items() if v is not None}}
    )


@dataclass(frozen=True, slots=True)
class ShutdownSettings:
    """What becomes of the host's wish to end this machine.

    ``commands`` are those of the way "command"; ``on_request`` hears of each order that is carried out.
    ``on_drain`` are called after the commands of ``drain`` and may take their time, with the same deadline.
    """

    ways: Sequence[Way] = knob(
        WAYS,
        "how to go down, in the order in which it is tried: logind (over D-Bus, with jeepney), systemctl, init (the "
        "first process is told), command (/sbin/poweroff and the like)",
    )
    commands: Mapping[PowerAction, Sequence[Sequence[str]]] = field(default_factory=lambda: COMMANDS)
    timeout: float = knob(10.0, "seconds that each way has", above=0, most=DAY)
    drain: Sequence[str] = knob(
        (),
        "command lines, without a shell, that are run before this machine goes down; they see "
        "HVRING_SHUTDOWN_ACTION, _REASON, _TEXT (the host's words), _FORCE and _DEADLINE (seconds that are left)",
    )
    drain_timeout: float = knob(
        10.0, "seconds that they have in all when the host names no deadline", above=0, most=DAY
    )
    on_drain: Sequence[OnDrain] = ()
    on_request: Callable[[ShutdownOrder], None] | None = None

    def __post_init__(self) -> None:
        verify(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Command lines that are none, and why."""
        for line in self.drain:
            import shlex

            try:
                if not any(shlex.split(line)[:1]):
                    yield "drain", f"{line!r} names no program"
            except ValueError as error:
                yield "drain", f"{line!r}: {error}"


@dataclass(frozen=True, slots=True)
class TimeSyncSettings:
    """What the host's time is for."""

    mode: TimeMode = knob(
        "observe",
        "observe: measure only; feed: give the host's time to the program that keeps the clock; step: set the clock by "
        "the host's SYNC, and after a pause",
    )
    feed_to: str = knob(
        "sock:/run/chrony/hvring.sock",
        "with feed: sock:PATH, as in chrony's `refclock SOCK PATH`, or shm:UNIT, NTP's shared memory",
    )
    feed_uncertainty: float = knob(
        0.1, "with feed: seconds; a sample of which less is known is not given on", above=0
    )
    implicit_sync: float | None = knob(
        5.0,
        "with step: seconds behind the host from which a mere sample sets the clock, too, when this machine was paused "
        "and the host sent no SYNC; none: never",
        above=0,
    )
    step_limit: float | None = knob(
        None,
        "with step: the most seconds by which the clock is set at once; more is refused; none: no limit",
        above=0,
    )

    def __post_init__(self) -> None:
        verify(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What fits no bounds."""
        if self.mode == "feed":
            from hvring.guest.time_feed import feed

            try:
                feed(self.feed_to)
            except ValueError as error:
                yield "feed_to", str(error)


@dataclass(frozen=True, slots=True)
class HeartbeatSettings:
    """What the host hears of the applications.

    ``health`` is asked at each heartbeat; None, or a None from it: the host's own word is echoed.
    """

    health: Callable[[], ApplicationState | None] | None = None


@dataclass(frozen=True, slots=True)
class KvpSettings:
    """The pool files, and what is said of this machine."""

    pool_directory: Path = knob(DIRECTORY, "where the pool files are")
    timeout: float = knob(2.0, "seconds to wait for other programs' locks", above=0, most=DAY)
    max_records: int = knob(MAX_RECORDS, "records in all pools together", least=0)
    stale: Literal["tell", "clean"] = knob(
        "tell",
        "what to do at the start with pools that were filled on another machine: tell, or clean (empty them)",
    )
    set_ip: Literal["refuse", "networkmanager", "networkd", "netplan"] = knob(
        "refuse", "what to do with IP settings from the host: refuse, or write a file for one of these"
    )
    set_ip_directory: Path | None = knob(None, "where that file goes; none: where its reader looks for it")
    set_ip_apply: Sequence[str] = knob(
        (),
        "a program and its words, as netplan, apply, that makes the file count now; none: from the next start on",
    )
    binary_ip: bool = knob(
        False, "whether to agree to version 5.0, in which IP settings are binary; Linux does not"
    )
    publish_errors: bool | None = knob(
        None,
        "whether the host can read in pool 1 why a service failed (hvring.vss.last_error and others); none: if "
        "effects are real",
    )
    domain_name_age: float = knob(
        300.0, "seconds after which the resolver is asked again for the domain name", above=0
    )

    def __post_init__(self) -> None:
        verify(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Words that are no command, and why."""
        if self.set_ip_apply and not self.set_ip_apply[0]:
            yield "set_ip_apply", "an empty text names no program"


@dataclass(frozen=True, slots=True)
class VssSettings:
    """Which file systems a backup freezes, and for how long; times in seconds."""

    exclude: Sequence[str] = knob(
        (),
        "file systems that a backup leaves alone: globs of mount points, as /mnt/*, of types, as type:vfat, or of what "
        "is mounted, as source:/dev/sdb*",
    )
    only: Sequence[str] | None = knob(
        None, "freeze nothing but these file systems, named as in exclude; none: all that can be"
    )
    only_named: bool = knob(
        False,
        "whether to freeze only what is on the disks that the host says it backs up; all, where it names none or one "
        "that is not known here",
    )
    loops: Sequence[str] = knob(
        (), "freeze these file systems, named as in exclude, although they are on a loop device"
    )
    open_timeout: float = knob(5.0, "seconds for one mount that may hang", above=0, most=DAY)
    freeze_timeout: float = knob(60.0, "seconds in which all must be frozen", above=0, most=DAY)
    thaw_timeout: float = knob(25.0, "seconds in which all must be thawed", above=0, most=DAY)
    max_frozen: float = knob(
        60.0, "seconds after which the service thaws, whatever the host says", above=0, most=DAY
    )
    deadline: float = knob(
        90.0, "seconds after which the guardian thaws, whatever the service says", above=0, most=DAY
    )
    hooks: Path | None = knob(
        HOOKS,
        "directory of programs that hold applications still during a backup (docs/hooks.md); none: no hooks",
    )
    hooks_qemu_ga: Sequence[Path] = knob(
        (), "directories as /etc/qemu/fsfreeze-hook.d, whose programs know freeze and thaw"
    )
    hooks_open_vm_tools: Sequence[Path] = knob(
        (),
        "directories as /etc/vmware-tools/backupScripts.d, whose programs know freeze, freezeFail and thaw",
    )
    hooks_entry_points: bool = knob(
        False,
        "whether hooks that Python packages bring (entry points of the group hvring.hooks) are run, too",
    )
    hooks_socket: Path | None = knob(
        None, "socket for applications that hold the freeze themselves (docs/hooks.md); none: there is none"
    )
    hooks_socket_group: str | None = knob(
        None, "group that may connect to it, by its name; none: the one of this process"
    )
    hook_objects: Sequence[BackupHook] = ()
    hooks_timeout: float = knob(30.0, "seconds for each phase of each hook", above=0, most=DAY)
    hooks_total: float = knob(120.0, "seconds for all hooks together before the freeze", above=0, most=DAY)
    capability_flags: int | None = knob(
        NO_AUTO_RECOVERY,
        "what HOT_BACKUP answers over a ring; none: the host's own bytes, as Linux does",
        least=0,
        most=2**32 - 1,
    )

    def __post_init__(self) -> None:
        verify(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Knobs that cannot be as they are beside others, and why."""
        for name in ("exclude", "only", "loops"):
            for problem in filter(None, map(mistake, getattr(self, name) or ())):
                yield name, problem
        if self.deadline <= self.max_frozen:
            yield "deadline", f"{self.deadline:g} is not above max_frozen, which is {self.max_frozen:g}"
        if self.hooks_timeout > self.hooks_total:
            yield (
                "hooks_total",
                f"{self.hooks_total:g} is below hooks_timeout, which is {self.hooks_timeout:g}",
            )
        if (spent := self.hooks_total + self.freeze_timeout + _STARTING) > HOST_WAITS:
            name = max(("freeze_timeout", "hooks_total"), key=lambda name: getattr(self, name))
            yield (
                name,
                f"with hooks_total, freeze_timeout and {_STARTING:g} s to start, a freeze may take {spent:g} s, and "
                f"the host waits {HOST_WAITS:g}",
            )
        if self.thaw_timeout > THAW_WAITS:
            yield "thaw_timeout", f"{self.thaw_timeout:g} is more than a host waits, which is {THAW_WAITS:g}"

    def hook_directories(self) -> list[tuple[str, str]]:
        """Each with the style of its programs, in the order of freezing."""
        found = []
        for knob_name, style in KNOBS.items():
            said = getattr(self, knob_name)
            paths = [] if said is None else [said] if isinstance(said, str | os.PathLike) else said
            found += [(os.fspath(path), style) for path in paths]
        return found


@dataclass(frozen=True, slots=True)
class CopyRule:
    """Other settings for files below a directory; what is none here is as in :class:`FcopySettings`."""

    path: Path = field(metadata={"says": "the directory, which is one of `allow` or below one"})
    mode: int | None = knob(None, "mode of the files", least=0, most=0o7777)
    owner: tuple[int, int] | None = knob(None, "uid and gid of the files", least=0, most=2**32 - 2)
    umask: int | None = knob(None, "bits that no file and no new directory gets", least=0, most=0o777)
    overwrite: bool | None = knob(None, "whether the host may replace files")
    create_path: bool | None = knob(None, "whether the host may have directories made")
    max_size: int | None = knob(None, "bytes of the largest file", least=0, most=LARGEST)
    quota: int | None = knob(None, "bytes that all files below it may have", least=0, most=LARGEST)
    reserve: int | None = knob(None, "bytes that must stay free", least=0, most=LARGEST)
    reserve_percent: float | None = knob(None, "how much must stay free, in percent", least=0, most=100)
    sync: bool | None = knob(None, "whether a file is on the disk before the host is told")

    def __post_init__(self) -> None:
        verify(self)


@dataclass(frozen=True, slots=True)
class FcopySettings:
    """What the host may copy into this machine."""

    allow: Sequence[Path] = knob(
        (), "directories below which the host may copy files; none: every copy is refused"
    )
    mode: int | None = knob(
        None,
        "mode of the files; none: that of the file that is replaced, or else 0o640",
        least=0,
        most=0o7777,
    )
    owner: tuple[int, int] | None = knob(
        None,
        "uid and gid of the files; none: those of the file that is replaced, or else this process's",
        least=0,
        most=2**32 - 2,  # the one above means "nobody" to the kernel
    )
    umask: int | None = knob(
        None,
        "bits that no file gets, whatever its mode, nor a directory that is made for one; none: this process's, for "
        "directories only",
        least=0,
        most=0o777,
    )
    overwrite: bool = knob(True, "whether the host may replace files, if it asks for that")
    create_path: bool = knob(True, "whether the host may have directories made, if it asks for that")
    sync: bool = knob(True, "whether a file is on the disk before the host is told")
    sha256: bool = knob(True, "whether the record of each copy has the file's SHA-256")
    allocate: bool = knob(
        True, "whether room for all of a file is taken when it begins, where the file system can do that"
    )
    max_size: int | None = knob(None, "bytes of the largest file; none: no limit", least=0, most=LARGEST)
    quota: int | None = knob(
        None,
        "bytes that all files below each of the directories may have, the host's and others; none: no limit",
        least=0,
        most=LARGEST,
    )
    reserve: int = knob(
        0, "bytes of the file system that must stay free when the host's files come", least=0, most=LARGEST
    )
    reserve_percent: float = knob(
        0.0,
        "the same in percent of the file system's size; of the two, what is more counts",
        least=0,
        most=100,
    )
    rules: Sequence[CopyRule] = knob(
        (), "other settings for some of the directories; the nearest rule above a file counts, and no other"
    )
    timeout: float = knob(10.0, "seconds that a file system may take for each step", above=0, most=DAY)
    sync_timeout: float = knob(
        25.0, "seconds that it may take to have all of a file on the disk", above=0, most=DAY
    )

    def __post_init__(self) -> None:
        verify(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Rules that are for no file, or twice for the same, and why."""
        allowed = [_components(path) for path in self.allow]
        seen = set()
        for rule in self.rules:
            parts = _components(rule.path)
            if parts in seen:
                yield "rules", f"{os.fspath(rule.path)!r:.100} has two rules"
            seen.add(parts)
            # With nothing allowed here, it may be on the command line.
            if allowed and not any(parts[: len(path)] == path for path in allowed):
                yield "rules", f"{os.fspath(rule.path)!r:.100} is at or below no directory of allow"

    def terms(self) -> Terms:
        """For all directories without a rule."""
        return Terms(**{field.name: getattr(self, field.name) for field in fields(Terms)})

    def terms_by_rule(self) -> Iterator[tuple[Path, Terms]]:
        """For the directories that have one."""
        names = {field.name for field in fields(CopyRule)} - {"path"}
        for rule in self.rules:
            own = {name: value for name in names if (value := getattr(rule, name)) is not None}
            yield rule.path, replace(self.terms(), **own)


def _components(path: Path) -> tuple[str, ...]:
    return tuple(part for part in os.path.abspath(os.fspath(path)).split("/") if part)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the services may do to this machine, and how.

    ``real``: freeze, power off, set the clock; without it these are rehearsed: same answers, same record, nothing
    done.
    """

    real: bool = False
    shutdown: ShutdownSettings = ShutdownSettings()
    timesync: TimeSyncSettings = TimeSyncSettings()
    heartbeat: HeartbeatSettings = HeartbeatSettings()
    kvp: KvpSettings = KvpSettings()
    vss: VssSettings = VssSettings()
    fcopy: FcopySettings = FcopySettings()
