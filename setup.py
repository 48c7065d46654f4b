# SPDX-License-Identifier: Apache-2.0
"""Builds the extensions; everything else is in pyproject.toml.

HVRING_SANITIZE=address,undefined builds them for a sanitizer run, HVRING_DEBUG=1 with debug information.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

flags = ["-O3", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
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
        depends=["hvring/ring/atomics.h"],
        extra_compile_args=flags,
        extra_link_args=links,
    )
    for name in ("hvring.ring._ring", "hvring.channel._channel")
]

setup(ext_modules=cythonize(extensions, language_level=3))
