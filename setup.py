# SPDX-License-Identifier: Apache-2.0
"""Builds the extensions; everything else is in pyproject.toml.

HVRING_SANITIZE=address,undefined builds them for a sanitizer run, HVRING_DEBUG=1 with debug information.
Without a Cython that is new enough they are built from C, if the tree has it (docs/decisions/0012).
"""

import os
import sysconfig

from setuptools import Extension, setup

flags = ["-O3", "-DNDEBUG", "-std=gnu11", "-fno-plt"]
flags += ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
# gcc: inline what says `inline`: the ring's functions are meant to be one piece with the method that calls them
if "clang" not in os.environ.get("CC", sysconfig.get_config_var("CC")):
    for limit in ("inline-unit-growth", "large-function-growth", "max-inline-insns-single"):
        flags.append(f"--param={limit}=1000")
    flags.append("--param=inline-min-speedup=1")
links = []
if os.environ.get("HVRING_DEBUG") is None:
    flags.append("-g0")
if sanitize := os.environ.get("HVRING_SANITIZE"):
    flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g", "-O1"]
    links += [f"-fsanitize={sanitize}"]

extensions = [
    Extension(
        name,
        [name.replace(".", "/") + ".pyx"],
        include_dirs=["hvring/ring", "hvring/channel"],
        depends=[
            *(f"hvring/ring/{header}.h" for header in ("atomics", "copy", "fastcall")),
            "hvring/channel/eventfd_signal.h",
        ],
        extra_compile_args=flags,
        extra_link_args=links,
    )
    for name in (
        "hvring.ring._ring",
        "hvring.channel._doorbell",
        "hvring.channel._sleeper",
        "hvring.channel._spinner",
        "hvring.channel._channel",
        "hvring.guest._ntp",
        "hvring.ic._kvp",
        "hvring.ic._request",
    )
]


def in_c(extensions: list[Extension]) -> list[Extension]:
    """The extensions by their C, generated now if Cython is there, or else as it came with this tree."""
    try:
        import Cython
        from Cython.Build import cythonize
    except ImportError:
        has = "there is none"
    else:
        if tuple(map(int, Cython.__version__.split(".")[:2])) >= (3, 1):
            return cythonize(extensions, language_level=3)
        has = f"there is {Cython.__version__}"
    for extension in extensions:
        extension.sources = [source.removesuffix(".pyx") + ".c" for source in extension.sources]
        if not os.path.exists(extension.sources[0]):
            raise SystemExit(
                f"building hvring needs Cython 3.1 ({has}), or a tree with {extension.sources[0]}"
            )
    return extensions


# Side by side: the two large ones take most of the time of an installation.
options = {"build_ext": {"parallel": len(os.sched_getaffinity(0))}}
setup(ext_modules=in_c(extensions), options=options)
