# SPDX-License-Identifier: Apache-2.0
"""Guest kernels: which ones Debian serves, choosing one, unpacking what the lab needs of it."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import UnavailableError
from lab.cache import Cache
from lab.debian import unpack
from lab.root import Root, root

_PACKAGE = re.compile(r"linux-image-(\d+\.\d+[\w.+~-]*)-cloud-amd64")
_MODULES = (
    *("hv_vmbus", "hv_utils", "hv_balloon", "uio", "uio_hv_generic", "brd", "dummy"),  # for the guest
    *("virtio_pci", "virtio_console"),  # for its shell
    *("virtio_blk", "squashfs", "kvm_amd"),  # for the middle layer
)
_RECIPE = " ".join(("1", *_MODULES))


@dataclass(frozen=True, slots=True)
class Kernel:
    """``release`` as in ``uname -r``; ``image`` is a bzImage; ``modules`` has NAME.ko and ``depends``."""

    release: str
    path: Path

    @property
    def image(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def modules(self) -> Path:
        return self.path / "modules"


def version_key(release: str) -> tuple[tuple[int, ...], str]:
    """Sorts releases as numbers: 6.12.100 comes after 6.12.57; of equal numbers the newer Debian wins."""
    numbers = re.match(r"[\d.]+", release)
    return tuple(int(n) for n in numbers[0].rstrip(".").split(".")) if numbers else (), release


def choose(wanted: str, releases: Iterable[str]) -> str:
    """The newest release that ``wanted`` ("6.12", "6.12.57", a whole release, "newest") names.

    Raises UnavailableError with what there is.
    """
    every = sorted(releases, key=version_key)
    exact = re.compile(re.escape(wanted) + r"(?!\d)")
    found = [r for r in every if wanted == "newest" or exact.match(r)]
    if not found:
        raise UnavailableError(
            f"Debian serves no kernel {wanted!r} now; it has: {', '.join(every) or 'none'}"
        )
    return found[-1]


def served(cache: Cache) -> list[str]:
    """Releases of all cloud kernels in the package lists, oldest first; apt is asked once."""
    archive = cache.archive
    file = archive.directory / "kernels"
    if not file.exists():
        names = archive.names(r"^linux-image-[0-9].*-cloud-amd64$")
        # a package named after a whole series (6.12, 7.3) only points to another one
        found = [m[1] for m in map(_PACKAGE.fullmatch, names) if m and not re.fullmatch(r"\d+\.\d+", m[1])]
        file.write_text("\n".join(sorted(found, key=version_key)))
    return file.read_text().split()


def kernel(cache: Cache, wanted: str) -> Kernel:
    """A kernel that Debian serves, by the words that ``choose`` takes; fetched at the first call."""
    release = choose(wanted, served(cache)) + "-cloud-amd64"

    def make(directory: Path) -> None:
        archive = cache.archive
        image = f"linux-image-{release}"
        # newer packages are split: the image's package is empty and depends on these
        parts = re.findall(rf"linux-(?:binary|modules)-{re.escape(release)}", archive.field(image, "Depends"))
        _take(archive.download(directory / "packages", image, *parts), directory, tool)

    tool = root(cache)
    return Kernel(release, cache.stage(f"kernels/{release}", _RECIPE, make))


def kernel_from_files(cache: Cache, packages: Sequence[Path]) -> Kernel:
    """A kernel from package files at hand."""
    tool = root(cache)
    digest = hashlib.sha256(b"".join(package.read_bytes() for package in packages)).hexdigest()
    path = cache.stage(
        f"kernels/files-{digest[:12]}", _RECIPE, lambda directory: _take(packages, directory, tool)
    )
    return Kernel((path / "release").read_text(), path)


def _take(packages: Sequence[Path], directory: Path, tool: Root) -> None:
    """Unpack, keep the image and the modules that the lab loads, remove the rest."""
    tree = directory / "tree"
    unpack(packages, tree)
    images = [path for path in tree.rglob("vmlinuz*") if path.is_file()]
    if len(images) != 1:
        raise ValueError(f"{', '.join(p.name for p in packages)}: {len(images)} kernel images, not one")
    image = images[0]  # boot/vmlinuz-RELEASE, or in newer packages modules/RELEASE/vmlinuz
    (directory / "release").write_text(
        image.name.removeprefix("vmlinuz-") if "-" in image.name else image.parent.name
    )
    shutil.copyfile(image, directory / "vmlinuz")
    (directory / "modules").mkdir()
    depends = _copy_modules(tree, directory / "modules", tool)
    lines = [f"{name}: {' '.join(needed)}\n" for name, needed in sorted(depends.items())]
    (directory / "modules/depends").write_text("".join(lines))
    shutil.rmtree(tree)
    shutil.rmtree(directory / "packages", ignore_errors=True)


def _copy_modules(tree: Path, target: Path, tool: Root) -> dict[str, list[str]]:
    """Copy _MODULES and all they depend on, decompressed; what the kernel has built in is not there."""
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in tree.rglob("*.ko*")}
    depends: dict[str, list[str]] = {}
    todo = [name for name in _MODULES if name in files]
    while todo:
        name = todo.pop()
        if name in depends:
            continue
        file = target / f"{name}.ko"
        _decompress(files[name], file, tool)
        found = re.search(rb"\0depends=([^\0]*)\0", file.read_bytes())
        words = found[1].decode().replace("-", "_").split(",") if found else []
        depends[name] = [word for word in words if word in files]
        todo += depends[name]
    return depends


def _decompress(source: Path, target: Path, tool: Root) -> None:
    if source.suffix == ".xz":
        target.write_bytes(lzma.decompress(source.read_bytes()))
    elif source.suffix == ".zst":
        tool.run("usr/bin/zstd", "-dq", source, "-o", target)
    else:
        shutil.copyfile(source, target)
