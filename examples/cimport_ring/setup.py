# SPDX-License-Identifier: Apache-2.0
"""python setup.py build_ext --inplace; needs Cython, a C compiler and an installed hvring."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import hvring.ring

pump = Extension(
    "pump", ["pump.pyx"], include_dirs=[hvring.ring.get_include()], extra_compile_args=["-O3", "-std=gnu11"]
)
setup(name="pump", ext_modules=cythonize([pump]))
