# SPDX-License-Identifier: Apache-2.0
"""What the machines boot from: the middle layer's disk and initramfs, and the two parts of the guest's."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lab.cache import Cache
from lab.cpio import write_newc
from lab.debian import unpack
from lab.kernels import Kernel
from lab.root import PYTHON, Root, root

_INIT = Path(__file__).parent / "init"
_LIBRARIES = (
    *("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1", "libffi.so.8", "libbz2.so.1.0", "liblzma.so.5"),
    *("libgcc_s.so.1", "libstdc++.so.6"),
)
_NOT_IN_MIDDLE = ("doc", "locale", "man", "perl", "info")
_NOT_IN_GUEST = ("ensurepip", "idlelib", "pydoc_data", "config-3*", "_ssl*", "_codecs_*")
# The real programs take the machine down; a line on the console says that, and how, they were called.
# As an init does it: this returns, then whoever serves is told to end and waited for, then the machine goes down.
_POWER = """#!/bin/sh
echo "L2: /sbin/{0} $*" > /dev/console
setsid sh -c "while kill -0 $$; do :; done; pkill -f '[h]vring run'; while pgrep -f '[h]vring run'; do :; done
busybox {0} -f" > /dev/null 2>&1 &
"""
_OS_RELEASE = 'PRETTY_NAME="Lab Linux 13"\nNAME="Lab Linux"\nVERSION_ID="13"\nID=lab\n'
_HOSTS = "127.0.0.1 localhost\n192.0.2.7 l2guest.example.test l2guest\n"


def initramfs(tree: Path, target: Path, tool: Root) -> None:
    """Pack ``tree`` for a kernel; such files may stand one behind the other in one initramfs."""
    command = tool.command("usr/bin/zstd", "-3", "-q", "-T2", "-f", "-o", target)
    with subprocess.Popen(command, stdin=subprocess.PIPE) as zstd:
        assert zstd.stdin
        write_newc(tree, zstd.stdin)
    if zstd.returncode:
        raise subprocess.CalledProcessError(zstd.returncode, command)


def middle_disk(cache: Cache) -> Path:
    """The root as a squashfs."""
    tool = root(cache)

    def make(directory: Path) -> None:
        leave_out = [f"usr/share/{name}" for name in _NOT_IN_MIDDLE]
        leave_out += ["usr/lib/x86_64-linux-gnu/perl-base", "usr/lib/python3", ".made"]
        options = (
            "-comp",
            "zstd",
            "-Xcompression-level",
            3,
            "-noappend",
            "-no-progress",
            "-quiet",
            "-all-root",
        )
        tool.run("usr/bin/mksquashfs", tool.path, directory / "disk", *options, "-e", *leave_out)

    return cache.stage("middle", f"1 {tool.key}", make) / "disk"


def middle_initramfs(cache: Cache, kernel: Kernel) -> Path:
    """busybox, the modules that mount the disks and start KVM, and l1init."""
    tool = root(cache)

    def make(directory: Path) -> None:
        tree = directory / "tree"
        _start(tree, tool)
        (tree / "new").mkdir()
        _add_modules(tree, kernel, ("virtio_blk", "squashfs", "kvm_amd"))
        _script(tree / "init", (_INIT / "l1init").read_text())
        initramfs(tree, directory / "image", tool)
        shutil.rmtree(tree)

    scripts = b"".join((_INIT / name).read_bytes() for name in ("l1init", "load"))
    return (
        cache.stage("outer", f"{kernel.release} {hashlib.sha256(scripts).hexdigest()} {tool.key}", make)
        / "image"
    )


def guest_base(cache: Cache) -> Path:
    """busybox, Python, Hyper-V's daemons, a small file system image: the first part of the initramfs."""
    tool = root(cache)

    def make(directory: Path) -> None:
        tree = directory / "tree"
        _start(tree, tool)
        for name in ("mnt", "srv", "var/lib/hyperv", "lib64", "usr/lib/x86_64-linux-gnu", "etc", "sbin"):
            (tree / name).mkdir(parents=True, exist_ok=True)
        (tree / "lib").symlink_to("usr/lib")
        _add_python(tree, tool)
        unpack(cache.archive.download(directory / "packages", "hyperv-daemons"), directory / "daemons")
        for part in ("sbin", "libexec"):
            if (directory / "daemons/usr" / part).exists():
                shutil.copytree(directory / "daemons/usr" / part, tree / "usr" / part, dirs_exist_ok=True)
        _script(tree / "bin/bash", '#!/bin/sh\nexec sh "$@"\n')
        for name in ("poweroff", "reboot"):
            _script(tree / "sbin" / name, _POWER.format(name))
        (tree / "etc/os-release").write_text(_OS_RELEASE)
        (tree / "etc/hosts").write_text(_HOSTS)
        options = ("-q", "-t", "ext4", "-E", "nodiscard", "-b", 1024)
        settings = {"MKE2FS_CONFIG": str(tool.path / "etc/mke2fs.conf")}
        tool.run("usr/sbin/mke2fs", *options, tree / "srv/ext4.img", 4096, env=settings)
        initramfs(tree, directory / "image", tool)
        for name in ("tree", "packages", "daemons"):
            shutil.rmtree(directory / name)

    return cache.stage("guest", f"2 {tool.key}", make) / "image"


def guest_rest(kernel: Kernel, target: Path, tool: Root, trees: Iterable[tuple[str, Path]]) -> None:
    """The other part: this kernel's modules, l2init and what it needs, and ``trees`` as (name in the guest, path)."""
    tree = target.with_suffix(".tree")
    (tree / "bin").mkdir(parents=True)
    shutil.copytree(kernel.modules, tree / "modules")
    for name in ("load", "await"):
        _script(tree / "bin" / name, (_INIT / name).read_text())
    _script(tree / "init", (_INIT / "l2init").read_text())
    for name, path in trees:
        shutil.copytree(path, tree / name)
    initramfs(tree, target, tool)
    shutil.rmtree(tree)


def _add_modules(tree: Path, kernel: Kernel, names: Iterable[str]) -> None:
    """Copy these modules of the kernel and what they depend on, and the script that loads them."""
    lines = (kernel.modules / "depends").read_text().splitlines()
    depends = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    (tree / "modules").mkdir()
    todo, done = list(names), set()
    while todo:
        name = todo.pop()
        if name not in done:
            done.add(name)
            shutil.copy(kernel.modules / f"{name}.ko", tree / "modules")
            todo += depends[name]
    shutil.copy(kernel.modules / "depends", tree / "modules")


def _start(tree: Path, tool: Root) -> None:
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (tree / name).mkdir(parents=True)
    shutil.copy(tool.path / "usr/bin/busybox", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    _script(tree / "bin/load", (_INIT / "load").read_text())


def _add_python(tree: Path, tool: Root) -> None:
    source, target = tool.path / "usr/lib/x86_64-linux-gnu", tree / "usr/lib/x86_64-linux-gnu"
    for name in _LIBRARIES:
        shutil.copy(source / name, target / name)
    shutil.copy(tool.path / "lib64/ld-linux-x86-64.so.2", tree / "lib64")
    (tree / "usr/bin").mkdir(exist_ok=True)
    shutil.copy(tool.path / "usr/bin" / PYTHON, tree / "usr/bin")
    (tree / "usr/bin/python3").symlink_to(PYTHON)
    shutil.copytree(
        tool.path / "usr/lib" / PYTHON,
        tree / "usr/lib" / PYTHON,
        symlinks=True,
        ignore=shutil.ignore_patterns(*_NOT_IN_GUEST),
    )


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
