# SPDX-License-Identifier: Apache-2.0
"""Why something did not work: a name that stays, what it means, and what an administrator can do about it.

The names are in events, in the log, in `hvring status`, in metrics and in what the host can read; none is ever reused.
"""

from __future__ import annotations

import errno
from enum import Enum
from typing import Final


class Reason(Enum):
    """``value`` is the name, ``explanation`` what happened, ``remedy`` what to do next."""

    explanation: str
    remedy: str

    def __new__(cls, name: str, explanation: str, remedy: str) -> Reason:
        self = object.__new__(cls)
        self._value_ = name
        self.explanation = explanation
        self.remedy = remedy
        return self

    # Of any service.
    FAILED = (
        "failed",
        "something that was asked of this machine did not work",
        "the error beside this name says what; look at that part of the machine",
    )
    UNEXPECTED = (
        "unexpected",
        "an error that nobody foresaw",
        "report it with the log from around that time",
    )
    BAD_REQUEST = (
        "bad_request",
        "the host sent a request that contradicts itself",
        "look at the host: its version, and what else asks this machine for something",
    )
    UNKNOWN_OPERATION = (
        "unknown_operation",
        "the host asked for something that this service does not know",
        "see whether a newer hvring knows it; nothing else is affected",
    )
    NOT_SUPPORTED = (
        "not_supported",
        "the host asked for something that this machine does not do, by its settings",
        "allow it in the configuration if it is wanted",
    )
    TOO_SLOW = (
        "too_slow",
        "the answer came after the kernel had given up on the request",
        "see what keeps this machine busy, or serve the service over its rings (`hvring run --bind`)",
    )
    PERMISSION_DENIED = (
        "permission_denied",
        "this process may not do that",
        "look at its user and capabilities, at modes and owners, and at SELinux or AppArmor (`ausearch -m avc`)",
    )
    READ_ONLY = (
        "read_only",
        "the file system is mounted read-only",
        "remount it, or see in the kernel's log why it was",
    )
    DISK_FULL = (
        "disk_full",
        "there is no room on the file system, or a quota is used up",
        "free some space (`df`, `df -i`, `quota`)",
    )
    NOT_FOUND = ("not_found", "a file or directory is missing", "make it, or name another one")
    IO_ERROR = (
        "io_error",
        "a disk or file system reported an error",
        "look at the kernel's log (`journalctl -k`)",
    )
    OUT_OF_RESOURCES = (
        "out_of_resources",
        "this machine ran out of memory, processes or open files",
        "see what uses them, and the limits of this process (`TasksMax=`, `LimitNOFILE=`, `MemoryMax=`)",
    )

    FROZEN = (
        "frozen",
        "it would write to a file system that a backup holds frozen",
        "repeat it from the host after the backup; a thaw within twenty seconds is waited for",
    )

    # Of backup.
    NOT_PRIVILEGED = (
        "not_privileged",
        "freezing file systems needs CAP_SYS_ADMIN",
        "run the agent as root, or with that capability in its unit",
    )
    EARLIER_FREEZE = (
        "earlier_freeze",
        "an earlier freeze is not over yet",
        "see which file system does not thaw (`hvring status`); `fsfreeze -u` thaws one by hand",
    )
    GUARDIAN_NOT_STARTED = (
        "guardian_not_started",
        "the process that guards a freeze could not be started",
        "look at memory, TasksMax and the unit's restrictions; nothing was frozen",
    )
    GUARDIAN_LOST = (
        "guardian_lost",
        "the process that guards a freeze was killed or stopped",
        "see who kills it (out of memory?); everything was thawed, and the host may try again",
    )
    MOUNTS_UNREADABLE = (
        "mounts_unreadable",
        "the table of mounts could not be read",
        "see that /proc is mounted and readable for this process",
    )
    MOUNT_UNREACHABLE = (
        "mount_unreachable",
        "a mount point does not answer when it is opened",
        "see what is behind it (a server, a disk, a FUSE program), or exclude it (`vss.exclude`)",
    )
    MOUNT_NOT_OPENED = (
        "mount_not_opened",
        "a mount point could not be opened",
        "look at the error beside this name; `hvring freeze --plan` tries each of them",
    )
    FREEZE_UNSUPPORTED = (
        "freeze_unsupported",
        "a file system cannot be frozen",
        "exclude it (`vss.exclude`), or move what a backup needs to one that can",
    )
    FREEZE_TIMEOUT = (
        "freeze_timeout",
        "a file system could not be frozen in time",
        "see who writes that much to it; a longer `vss.freeze_timeout` may do, if the host waits so long",
    )
    FREEZE_STUCK = (
        "freeze_stuck",
        "the kernel does not come back from freezing a file system",
        "look at its stacks (`echo w > /proc/sysrq-trigger`): often a virus scanner, or what lies on a frozen one",
    )
    FREEZE_FAILED = (
        "freeze_failed",
        "the kernel refused to freeze a file system",
        "look at the error beside this name and at the kernel's log, or exclude it (`vss.exclude`)",
    )
    FREEZE_BROKEN_OFF = (
        "freeze_broken_off",
        "the freeze was ended before it was complete, by the host or by the end of the agent",
        "if nobody meant that: see whether it took longer than the host waits",
    )
    FREEZE_EXPIRED = (
        "freeze_expired",
        "the host did not end the freeze in time, so this machine did",
        "look at the host's backup; a longer `vss.max_frozen` may do, if programs here can wait so long",
    )
    FREEZE_LOST = (
        "freeze_lost",
        "file systems were thawed while the host relied on the freeze",
        "see who thawed them or ended the guardian; the host was told, so that it does not trust that backup",
    )
    THAW_FAILED = (
        "thaw_failed",
        "a file system is not known to be thawed",
        "it is tried again each second; `fsfreeze -u` thaws by hand, and the kernel's log may say why it does not",
    )
    HOOK_FAILED = (
        "hook_failed",
        "a hook failed, so nothing was frozen; or it failed at the end of a backup",
        "its last words are beside this name; `hvring hooks test` runs all without a backup",
    )
    HOOK_TIMEOUT = (
        "hook_timeout",
        "a hook took longer than it may",
        "see what it waits for (`hvring hooks test`), or raise `vss.hooks_timeout`",
    )
    HOOK_REFUSED = (
        "hook_refused",
        "a file among the hooks is not run: of its kind, mode or owner",
        "`hvring hooks list` says which and why; `chown root` and `chmod 755` it, or take it away",
    )
    HOOKS_NOT_RUN = (
        "hooks_not_run",
        "the process that runs the hooks was killed or stopped, or could not be started",
        "see who kills it, memory and TasksMax; another one gave those that had begun their end, if it could be had",
    )

    # Of file copy.
    NOT_ALLOWED = (
        "not_allowed",
        "the directory is not one that the host may copy into",
        "name it in `fcopy.allow` (`--allow`) if it is meant to be",
    )
    BAD_NAME = (
        "bad_name",
        "the name or path is none that a file can have here",
        "use a plain name and an absolute path of the guest on the host's side",
    )
    LINK_IN_PATH = (
        "link_in_path",
        "the path goes through a symbolic link, which is never followed",
        "name the real directory, on the host and in `fcopy.allow`",
    )
    ALREADY_EXISTS = (
        "already_exists",
        "there is a file of this name already",
        "remove it, or have the host overwrite it (`Copy-VMFile -Force`)",
    )
    NO_DIRECTORY = (
        "no_directory",
        "the directory does not exist",
        "make it, or have the host make it (`Copy-VMFile -CreateFullPath`)",
    )
    TOO_LARGE = (
        "too_large",
        "the file is larger than allowed",
        "raise `fcopy.max_size` if such files are wanted",
    )
    OVER_QUOTA = (
        "over_quota",
        "the files below the directory would take more than its quota",
        "take away what is not needed there, or raise `fcopy.quota` or the quota of its rule",
    )
    BELOW_RESERVE = (
        "below_reserve",
        "less of the file system would stay free than must",
        "free some space (`df`), or lower `fcopy.reserve`, `fcopy.reserve_percent` or those of its rule",
    )
    INCOMPLETE = (
        "incomplete",
        "bytes of the file never came, or came twice",
        "copy it again; if that happens again, look at the host",
    )
    FILE_SYSTEM_HANGS = (
        "file_system_hangs",
        "a file system does not answer",
        "see what is behind it (a server, a disk, a FUSE program); the copy can be repeated when it does",
    )
    WORKER_LOST = (
        "worker_lost",
        "the process that writes files has ended, or could not be started",
        "see who killed it (out of memory?), TasksMax, and the unit's restrictions; the copy can be repeated",
    )
    CANCELLED = ("cancelled", "the host took it back", "nothing to do here: repeat it from the host")
    BROKEN_OFF = (
        "broken_off",
        "the host began something else, or went away, before this was complete",
        "nothing to do here: repeat it from the host",
    )

    # Of data exchange.
    POOL_LOCKED = (
        "pool_locked",
        "another program keeps a pool file locked",
        "see who does (`lslocks`, `fuser -v /var/lib/hyperv/.kvp_pool_*`)",
    )
    POOL_FULL = (
        "pool_full",
        "the pools hold as many records as they may",
        "delete some (`hvring kvp list`, `hvring kvp delete`), or raise `kvp.max_records`",
    )
    POOL_DAMAGED = (
        "pool_damaged",
        "a pool file is none, or is changed by a program that takes no lock",
        "see who writes it; a file that is none can be moved away, it is made anew",
    )
    NO_SUCH_POOL = ("no_such_pool", "the host named a pool that there is not", "look at the host's program")
    STALE_POOLS = (
        "stale_pools",
        "the pools were filled on another virtual machine, of which this one is a copy",
        "`hvring kvp clean --stale` empties them, `hvring kvp clean --record-only` keeps them; or set `kvp.stale`",
    )

    # Of shutdown.
    INHIBITED = (
        "inhibited",
        "a program holds a lock against it",
        "`systemd-inhibit --list` names it; the host can insist (`Stop-VM -Force`)",
    )
    NO_WAY = (
        "no_way",
        "there is no program on this machine that could do it",
        "install what the message names, or name another way in `shutdown.ways`",
    )
    CANNOT_HIBERNATE = (
        "cannot_hibernate",
        "this machine cannot be hibernated as it is",
        "the message says what is missing: swap, `resume=`, the kernel's support, or a device given back",
    )
    ANOTHER_UNDER_WAY = (
        "another_under_way",
        "this machine is doing something else of that kind already",
        "nothing to do: the first order goes on",
    )
    COMMAND_FAILED = (
        "command_failed",
        "the programs that should do it failed or took too long",
        "the message has their last words; try `systemctl poweroff` by hand",
    )

    DRAIN_FAILED = (
        "drain_failed",
        "what should be done before this machine goes down did not work, or took too long",
        "look at the commands in `shutdown.drain`; the machine goes down nevertheless",
    )

    # Of time and heartbeat.
    CLOCK_NOT_SET = (
        "clock_not_set",
        "the clock could not be set",
        "give the process CAP_SYS_TIME, or leave the clock to chrony (`hvring time`)",
    )
    CLOCK_KEPT = (
        "clock_kept",
        "another program keeps the clock, and this machine did not stand still, so it was not set",
        "nothing to do if that program is wanted; else end it, or take `timesync.mode` back to observe or feed",
    )
    STEP_TOO_LARGE = (
        "step_too_large",
        "the host's time is further away than `timesync.step_limit` allows",
        "look at the host's clock; raise the limit, or set this machine's clock by hand",
    )
    FEED_UNREACHABLE = (
        "feed_unreachable",
        "the program that is to be given the host's time does not take it",
        "see that it runs, and that its configuration has the `refclock` line for `timesync.feed_to`",
    )
    HOST_UNSYNCHRONIZED = (
        "host_unsynchronized",
        "the host says that its own clock is kept by nobody, so its time is not given on",
        "look at the time service of the host",
    )
    SAMPLE_UNCERTAIN = (
        "sample_uncertain",
        "how long the host's messages waited is not known well enough, so they are not given on",
        "`modprobe msr` lets the reference counter be read (`hvring doctor`); `timesync.feed_uncertainty` is the limit",
    )
    DEVICE_UNUSABLE = (
        "device_unusable",
        "a device could not be opened or read",
        "`hvring doctor` says who has it, and what to do",
    )
    HEALTH_UNKNOWN = (
        "health_unknown",
        "nobody could say how the applications are, so they count as critical",
        "look at the check that the message names",
    )


class Obstacle(str):
    """What is known to be in the way, in words; ``reason`` is the name for it."""

    __slots__ = ("reason",)

    reason: Reason

    def __new__(cls, words: str, reason: Reason) -> Obstacle:
        self = super().__new__(cls, words)
        self.reason = reason
        return self


_BY_ERRNO: Final = {
    errno.EACCES: Reason.PERMISSION_DENIED,
    errno.EPERM: Reason.PERMISSION_DENIED,
    errno.EROFS: Reason.READ_ONLY,
    errno.ENOSPC: Reason.DISK_FULL,
    errno.EDQUOT: Reason.DISK_FULL,
    errno.EFBIG: Reason.DISK_FULL,
    errno.ENOENT: Reason.NOT_FOUND,
    errno.ENOTDIR: Reason.NOT_FOUND,
    errno.EEXIST: Reason.ALREADY_EXISTS,
    errno.EISDIR: Reason.ALREADY_EXISTS,
    errno.ELOOP: Reason.LINK_IN_PATH,
    errno.EXDEV: Reason.LINK_IN_PATH,
    errno.EIO: Reason.IO_ERROR,
    errno.EMFILE: Reason.OUT_OF_RESOURCES,
    errno.ENFILE: Reason.OUT_OF_RESOURCES,
    errno.ENOMEM: Reason.OUT_OF_RESOURCES,
    errno.EAGAIN: Reason.OUT_OF_RESOURCES,
    errno.EOPNOTSUPP: Reason.NOT_SUPPORTED,
}


def of_errno(number: int | None) -> Reason:
    """What the kernel's word for it means here."""
    return _BY_ERRNO.get(number or 0, Reason.FAILED)
