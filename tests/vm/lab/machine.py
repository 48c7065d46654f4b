# SPDX-License-Identifier: Apache-2.0
"""Boot the outer machine, which runs the middle layer, which runs the guest; give back what it left."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.images import guest_rest
from lab.kernels import Kernel
from lab.root import Root

_ESCAPES = re.compile(r"\x1b(?:\[[?0-9;]*[A-Za-z]|c)")  # the BIOS clears the screen
_OUT_SIZE = 256 << 20  # a sparse file
_WORDS = "console=ttyS0 quiet panic=-1 tsc=reliable clocksource=tsc mitigations=off nokaslr"


@dataclass(frozen=True, slots=True)
class Parts:
    """What every run of a cache shares; ``trees`` go to the middle layer and the guest under their names."""

    tool: Root
    outer_kernel: Kernel
    outer_initramfs: Path
    middle_disk: Path
    guest_base: Path
    device: Path
    middle: Path
    trees: Sequence[tuple[str, Path]] = field(default=())


def run(
    parts: Parts, kernel: Kernel, plan: dict[str, Any], out: Path, limit: float, echo: Callable[[str], None]
) -> bool:
    """One boot, for at most ``limit`` seconds. ``plan`` is what middle/main.py reads.

    ``out`` gets log.txt (all consoles, with seconds) and what the middle layer left. False: out of time.
    """
    work = out / "work"
    work.mkdir(parents=True)
    _prepare(parts, kernel, plan, work)
    in_time = _boot(_command(parts, work), out / "log.txt", limit, echo)
    # an empty disk is an empty archive: then the log says why nothing came back
    subprocess.run(["tar", "x", "--no-same-owner", "-C", out, "-f", work / "out.raw"], check=False)
    shutil.rmtree(work)
    return in_time


def _prepare(parts: Parts, kernel: Kernel, plan: dict[str, Any], work: Path) -> None:
    rest = work / "rest.img"
    guest_rest(kernel, rest, parts.tool, parts.trees)
    with (work / "initramfs").open("wb") as whole:
        for part in (parts.guest_base, rest):
            whole.write(part.read_bytes())
            whole.write(
                bytes(-whole.tell() % 4)
            )  # the kernel looks for the next archive at a multiple of four
    (work / "plan.json").write_text(json.dumps(plan))
    with tarfile.open(work / "lab.tar", "w") as tar:
        tar.add(work / "initramfs", "initramfs")
        tar.add(work / "plan.json", "plan.json")
        tar.add(kernel.image, "kernel")
        tar.add(parts.device, "hv-ic.so")
        tar.add(parts.middle, "middle")
        for name, path in parts.trees:
            tar.add(path, name)
    with (work / "out.raw").open("wb") as disk:
        disk.truncate(_OUT_SIZE)


def _command(parts: Parts, work: Path) -> list[str]:
    share = parts.tool.path / "usr/share"
    arguments = ["-L", share / "qemu", "-L", share / "seabios", "-accel", "tcg,thread=multi,tb-size=1024"]
    arguments += ["-cpu", "EPYC", "-smp", "2", "-m", "3G", "-machine", "q35", "-nodefaults", "-nographic"]
    arguments += ["-no-reboot", "-serial", "stdio", "-monitor", "none"]
    arguments += ["-kernel", parts.outer_kernel.image, "-initrd", parts.outer_initramfs, "-append", _WORDS]
    disks = (
        (parts.middle_disk, ",readonly=on,file.locking=off"),
        (work / "lab.tar", ",readonly=on"),
        (work / "out.raw", ""),
    )
    for number, (path, more) in enumerate(disks):
        arguments += ["-drive", f"file={path},if=none,id=disk{number},format=raw{more}"]
        arguments += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    return parts.tool.command("usr/bin/qemu-system-x86_64", *arguments)


def _boot(command: list[str], log: Path, limit: float, echo: Callable[[str], None]) -> bool:
    start = time.monotonic()
    out_of_time = threading.Event()
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as qemu,
    ):
        assert qemu.stdout

        def stop() -> None:
            out_of_time.set()
            qemu.kill()

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            for raw in qemu.stdout:
                line = _ESCAPES.sub("", raw.decode(errors="replace")).rstrip()
                print(f"{time.monotonic() - start:7.2f} {line}", file=file, flush=True)
                echo(line)
        except BaseException:
            qemu.kill()
            raise
        finally:
            timer.cancel()
    return not out_of_time.is_set()
