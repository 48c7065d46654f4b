# SPDX-License-Identifier: Apache-2.0
"""Builds the extensions; everything else is in pyproject.toml.

HVRING_SANITIZE=address,undefined builds them for a sanitizer run, HVRING_DEBUG=1 with debug information.
"""

import os
import sysconfig

from Cython.Build import cythonize
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
        include_dirs=["hvring/ring"],
        depends=[f"hvring/ring/{header}.h" for header in ("atomics", "copy", "quick")],
        extra_compile_args=flags,
        extra_link_args=links,
    )
    for name in (
        "hvring.ring._ring",
        "hvring.channel._doorbell",
        "hvring.channel._sleeper",
        "hvring.channel._spinner",
        "hvring.channel._channel",
    )
]

setup(ext_modules=cythonize(extensions, language_level=3))
