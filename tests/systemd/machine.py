# SPDX-License-Identifier: Apache-2.0
"""A real systemd as the first process of namespaces of its own, over a Debian tree that it cannot change.

``with Machine("trixie", folder, group) as machine: machine.run("systemctl", "start", "hvring.service")``.

It has a root, /run, /dev, processes, control groups, a host name and a network of its own.  What it powers off or boots
anew is its process namespace.  It may not set the clock, load modules or write below /proc/sys and /sys, and sees
no device of this machine.  ``/usr/bin/hvring`` in it is the hvring that is tested, with the tests' Python.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

import hvring

LONG: Final = 60.0  # seconds, of which a quiet machine needs few
#: Where a machine has the tests' own Python; its usual place may be in somebody's home, which units do not see.
HOME: Final = "/opt/hvring"
SHARED: Final = "/shared"
_TOOLS: Final = ("unshare", "nsenter", "setpriv", "pivot_root", "mount")
#: What would change the machine outside, which has only one clock, one kernel and one set of modules.
_NOT_OURS: Final = (
    "sys_time",
    "sys_module",
    "sys_rawio",
    "syslog",
    "mac_admin",
    "mac_override",
    "audit_control",
)
_REFUSED: Final = ("not permitted", "ermission denied", "unknown filesystem", "not supported")
_MASKED: Final = (
    *("systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket"),
    *("systemd-udev-trigger.service", "systemd-timesyncd.service", "console-getty.service", "getty@.service"),
    *(
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
    ),
    *("dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-pcrlock.socket"),
    *("sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "systemd-resolved.service"),
)
#: $1 the tree, $2 an empty directory, $3 the shared directory; WHAT WHERE for each directory that is shown; "--".
_SETUP: Final = r"""
set -e
[ $$ = 1 ] || { echo "not the first process of a namespace" >&2; exit 1; }
tree=$1 own=$2 shared=$3; shift 3
mount -t tmpfs -o mode=755 hvring-machine "$own"
mkdir "$own/upper" "$own/work" "$own/root"
mount -t overlay -o "lowerdir=$tree,upperdir=$own/upper,workdir=$own/work" overlay "$own/root"
root=$own/root
mount -t proc proc "$root/proc"
for path in sys sysrq-trigger; do
  [ -e "$root/proc/$path" ] || continue
  mount --bind "$root/proc/$path" "$root/proc/$path"
  mount -o remount,bind,ro "$root/proc/$path"
done
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
  IFS=: read -r name major minor <<END
$device
END
  mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=755 run "$root/run"
mkdir -p "$root/shared" "$root/.outside"
mount --bind "$shared" "$root/shared"
cp -R "$shared/.files/." "$root/"
while [ "$1" != -- ]; do
  mkdir -p "$root$2"
  mount --bind "$1" "$root$2"
  mount -o remount,bind,ro "$root$2"
  shift 2
done
shift
cd "$root"
pivot_root . .outside
umount -l /.outside
rmdir /.outside
exec "$@"
"""


class Machine:
    """Running; ``with`` stops it."""

    def __init__(
        self,
        suite: str,
        folder: Path,
        group: Path,
        *,
        files: Mapping[str, str] | None = None,
        shows: Mapping[str, str] | None = None,
        tree: Path | None = None,
        is_bare: bool = False,
    ) -> None:
        """Start it, and wait until it has booted.

        ``folder`` is empty and becomes the machine's (``shared`` in it is /shared there), ``group`` is a control group
        for it alone (a fixture).  ``files``: absolute path to text, or to a link with ``->`` before what it leads to;
        executable if it begins with ``#!``.  ``shows``: more directories of here that are at a path there, read-only.
        ``tree``: instead of the suite's; ``is_bare``: without the hvring that is tested and its Python.
        Skips the test where that cannot be.
        """
        from trees import tree_of

        needed = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
        if os.geteuid() != 0 or needed:
            pytest.skip(f"needs {', '.join(needed) or 'root'}")
        lower = tree or tree_of(suite)
        self.folder, self.shared, self._group = folder, folder / "shared", group
        (folder / "own").mkdir(parents=True)
        self.shared.mkdir()
        self.shared.chmod(0o755)
        for above in (folder, *folder.parents):  # who in the machine is not root has to get there
            if above == Path(folder.anchor) or above.stat().st_mode & 0o005:
                break
        shown = {**({} if is_bare else python()), **(shows or {})}
        self._write({**_basics(), **({} if is_bare else _tested()), **(files or {})})
        notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        notices.bind(os.fspath(_short(self.shared) / "notices"))
        self._log = folder / "log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [
                    *("sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', str(group)),
                    *(
                        "unshare",
                        "--mount",
                        "--propagation=private",
                        "--pid",
                        "--cgroup",
                        "--uts",
                        "--ipc",
                        "--net",
                    ),
                    *("--fork", "--kill-child", "sh", "-c", _SETUP, "sh"),
                    *(os.fspath(lower), os.fspath(folder / "own"), os.fspath(self.shared)),
                    *(word for what, where in ((b, a) for a, b in shown.items()) for word in (what, where)),
                    "--",
                    *("setpriv", "--bounding-set", ",".join(f"-{name}" for name in _NOT_OURS)),
                    *(
                        "env",
                        "-i",
                        "container=hvring-test",
                        f"NOTIFY_SOCKET={SHARED}/notices",
                        f"PATH={_PATH}",
                    ),
                    *("/lib/systemd/systemd", "--unit=multi-user.target", "--show-status=no"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": _PATH},
            )
        try:
            with notices:
                self._await_boot(notices)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------- for tests

    def run(
        self,
        *command: str,
        check: bool = True,
        timeout: float = LONG,
        user: str | None = None,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A command in the machine, as root or another user of it; AssertionError with its words if it fails."""
        done = subprocess.run(
            self.inside(*command, user=user, env=env),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, (command, done.returncode, done.stdout, done.stderr)
        return done

    def inside(
        self, *command: str, user: str | None = None, env: Mapping[str, str] | None = None
    ) -> list[str]:
        """The command line that runs a command there, in a control group of its own."""
        as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups") if user else ()
        given = [f"{name}={value}" for name, value in (env or {}).items()]
        into = 'echo 0 > "$0/cgroup.procs" && exec "$@"'
        (self._group / "tests").mkdir(exist_ok=True)
        return [
            *("sh", "-c", into, str(self._group / "tests"), "nsenter", f"--target={self.pid}"),
            *("--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net", f"--wd=/proc/{self.pid}/root"),
            *(*as_user, "env", "-i", f"PATH={_PATH}", "HOME=/root", "LANG=C.UTF-8", *given, *command),
        ]

    def systemctl(self, *words: str, check: bool = True) -> str:
        """What systemctl says."""
        return self.run("systemctl", "--no-pager", *words, check=check).stdout.strip()

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        said = self.systemctl("show", unit, *(f"--property={name}" for name in names))
        return dict(line.split("=", 1) for line in said.splitlines())

    def wait_for(self, unit: str, timeout: float = LONG, **properties: str) -> dict[str, str]:
        """Until the unit has these properties, such as ActiveState="active"; all of those asked for."""
        end = time.monotonic() + timeout
        while (found := self.show(unit, *properties)) != properties:
            assert time.monotonic() < end, (unit, found, properties, self.journal(unit)[-10:])
            time.sleep(0.05)
        return found

    def journal(self, unit: str | None = None) -> list[str]:
        """The lines of the journal, of one unit or all."""
        which = ("-u", unit) if unit else ()
        return self.run("journalctl", "--no-pager", "-q", "-o", "cat", *which).stdout.splitlines()

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """The records of the journal with all their fields."""
        lines = self.run("journalctl", "--no-pager", "-q", "-o", "json", *matches).stdout.splitlines()
        return [json.loads(line) for line in lines]

    def path(self, name: str) -> Path:
        """A file of the machine, as it is reached from here; an absolute link in it leads out."""
        return Path(f"/proc/{self.pid}/root") / name.lstrip("/")

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        """A file of the running machine; units need a daemon-reload after it."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)

    def wait_end(self, timeout: float = LONG) -> str:
        """Until it has gone down: "poweroff" (also for a halt), "reboot", or what else ended it."""
        status = self._process.wait(timeout)
        return {-signal.SIGINT: "poweroff", -signal.SIGHUP: "reboot", 0: "poweroff"}.get(status, str(status))

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Everything of it is killed, with its first process."""
        if self._process.poll() is None:
            self._process.kill()  # unshare's child dies with it, and with that the namespace
            self._process.wait()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------- inside

    def _await_boot(self, notices: socket.socket) -> None:
        end = time.monotonic() + LONG
        gone = os.pidfd_open(self._process.pid)
        try:
            while True:
                ready, _, _ = select.select([notices, gone], [], [], max(0.0, end - time.monotonic()))
                if notices in ready and b"READY=1" in notices.recv(4096).splitlines():
                    break
                if gone in ready or not ready:
                    said = self._log.read_text(errors="replace")[-500:]
                    if any(words in said for words in _REFUSED):
                        pytest.skip(f"no machine of namespaces here: {said}")
                    raise AssertionError(f"the machine does not boot: {said}")
        finally:
            os.close(gone)
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self.pid = int(children[0])  #: of its first process, as seen from here
        # reboot(2) ends a process namespace, but outside of one this machine.
        assert os.readlink(f"/proc/{self.pid}/ns/pid") != os.readlink("/proc/self/ns/pid")

    def _write(self, files: Mapping[str, str]) -> None:
        root = self.shared / ".files"
        for name, text in files.items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("->"):
                path.symlink_to(text[2:].strip())
            else:
                path.write_text(text, encoding="utf-8")
                path.chmod(0o755 if text.startswith("#!") else 0o644)


_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _short(folder: Path) -> Path:
    """A name for it that fits into a socket's address: the paths of pytest may be long."""
    descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    return Path(f"/proc/self/fd/{descriptor}")


def interpreter() -> str:
    """The tests' Python, as the machine has it."""
    return f"{HOME}/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"


def python() -> dict[str, str]:
    """Where a machine shows what of here, for :func:`interpreter` and its modules."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    shown = {f"{HOME}/package/hvring": os.fspath(Path(hvring.__file__).parent)}
    sites = [
        path for path in sys.path if path.endswith(("site-packages", "dist-packages")) and os.path.isdir(path)
    ]
    shown |= {f"{HOME}/site{number}": path for number, path in enumerate(sites)}
    if sys.base_prefix == "/usr":  # a distribution's: its program and library, without all else that is there
        shown[f"{HOME}/python/lib/{version}"] = f"/usr/lib/{version}"
        shown[f"{HOME}/python/bin"] = "/usr/bin"
    else:
        shown[f"{HOME}/python"] = os.path.realpath(sys.base_prefix)
    return shown


def _basics() -> dict[str, str]:
    return {
        "/etc/machine-id": os.urandom(16).hex() + "\n",
        "/etc/hostname": "hvring-test\n",
        "/etc/fstab": "",
        "/etc/systemd/journald.conf.d/test.conf": "[Journal]\nStorage=volatile\nRateLimitBurst=0\n",
        **{f"/etc/systemd/system/{unit}": "-> /dev/null" for unit in _MASKED},
    }


def _tested() -> dict[str, str]:
    sites = [where for where in python() if where.startswith(f"{HOME}/site")]
    paths = [f"{HOME}/package", *sites]
    return {
        "/usr/bin/hvring": f"#!{interpreter()} -I\nimport sys\nsys.path[:0] = {paths!r}\n"
        "from hvring.cli import main\nsys.exit(main())\n",
        **_library(),
    }


def _library() -> dict[str, str]:
    """libpython, where a Python has one that is in no place of the system's."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    if sys.base_prefix == "/usr" or ".so" not in name:
        return {}
    return {f"/usr/lib/{name}": f"-> {HOME}/python/lib/{name}"}


def text_of(names: Sequence[Path], where: str) -> dict[str, str]:
    """Files as ``files`` of a machine wants them, in one directory of it."""
    return {f"{where}/{path.name}": path.read_text(encoding="utf-8") for path in names}
