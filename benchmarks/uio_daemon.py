# SPDX-License-Identifier: Apache-2.0
"""The in-tree file copy daemon of kernels since 6.10, over two rings: compiled unmodified out of the distribution's own
kernel source package, with rings in shared memory for its uio device.
"""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from types import TracebackType

import linux_hv
from daemons import TIMEOUT
from measure import cache
from peers import FLAGS, HERE, Unavailable, kept, need, run

from hvring.transport.endpoint import close_all, receive_offer
from hvring.transport.virtual import Offer
from hvring.vmbus import BY_NAME

FILES = ("hv_fcopy_uio_daemon.c", *linux_hv.FILES)
DEVICE = "/sys/bus/vmbus/devices/" + BY_NAME["fcopy"].instance_guid
SCRIPT = f"""
mount -t tmpfs none /sys && mkdir -p {DEVICE}/uio/uio0 {DEVICE}/channels/1 && truncate -s "$1" {DEVICE}/channels/1/ring
LD_PRELOAD="$2" exec "$0" --no-daemon
"""


def program() -> Path:
    """hv_fcopy_uio_daemon, built once with the flags of tools/hv.  Raises Unavailable with the reason."""
    need("cc", "unshare", "truncate")
    if os.geteuid() != 0:
        raise Unavailable("hv_fcopy_uio_daemon needs root: its /sys is replaced in a private mount namespace")
    folder = cache() / "hv_fcopy_uio"
    built = folder / "hv_fcopy_uio_daemon"
    if not built.exists():
        if not all((folder / name).exists() for name in FILES):
            linux_hv.fetch(folder, FILES)
        sources = [str(folder / name) for name in FILES if name.endswith(".c")]
        made = folder / f"made-{os.getpid()}"
        run(["cc", "-O2", "-D_GNU_SOURCE", "-I", str(folder), "-o", str(made), *sources], folder)
        made.replace(built)
    return built


def shim() -> Path:
    """What turns rings in shared memory into its device, built once."""
    path = kept("uio_shim", "uio_shim.c")
    if not path.exists():
        run(["cc", *FLAGS, "-o", str(path), str(HERE / "uio_shim.c"), "-ldl"], HERE)
    return path


class UioDaemon:
    """It runs, and its rings are those of `offer`; `lifeline` is readable once it does not.  Raises Unavailable."""

    def __init__(self, folder: Path) -> None:
        daemon, preloaded = program(), shim()
        self.offer = Offer(BY_NAME["fcopy"])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            self.offer.answer(ours)
            _, descriptors = receive_offer(theirs)
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", SCRIPT, daemon, str(2 * self.offer.ring_size), preloaded],
            env={**os.environ, "HVRING_BENCH_UIO": "{} {} {}".format(*descriptors)},
            pass_fds=descriptors,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
        close_all(descriptors)
        self.lifeline = os.pidfd_open(self.process.pid)

    @property
    def pid(self) -> int:
        return self.process.pid

    def close(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)
        os.close(self.lifeline)
        self.offer.close()

    def __enter__(self) -> UioDaemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
