# SPDX-License-Identifier: Apache-2.0
"""A C peer's ring as other bindings would give it to Python: one call of ctypes or of cffi for each packet."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import sysconfig
from collections.abc import Callable

from measure import cache
from peers import Ring, Unavailable, run

DECLARED = "int bench_send(void *c, void *data, uint32_t length); int bench_recv(void *c, void *data, uint32_t room);"
BUILD = """
import sys, cffi
declared, library, folder = sys.argv[1:]
ffi = cffi.FFI()
ffi.cdef(declared)
ffi.set_source("cffi_peer", "#include <stdint.h>\\n" + declared, extra_objects=[library])
ffi.compile(folder)
"""
Pair = Callable[[], None]


def by_ctypes(library: ctypes.CDLL, ring: Ring, channel: int, size: int) -> Pair:
    """One packet in and out; addresses are made once."""
    send, receive = library.bench_send, library.bench_recv
    end, source, target = ctypes.c_void_p(channel), ring.source_at, ring.target_at

    def pair() -> None:
        send(end, source, size)
        receive(end, target, size)

    return pair


def by_cffi(library: ctypes.CDLL, ring: Ring, channel: int, size: int) -> Pair:
    """The same through an extension that cffi makes (its API mode).  Raises Unavailable with the reason."""
    try:
        import cffi
    except ImportError:
        raise Unavailable("cffi is not installed") from None
    folder = cache() / f"cffi-{library.path.stem}-{sysconfig.get_config_var('SOABI')}"
    built = next(iter(folder.glob("cffi_peer*.so")), None)
    if built is None:
        folder.mkdir(exist_ok=True)
        run([sys.executable, "-c", BUILD, DECLARED, str(library.path), str(folder)], folder)
        built = next(folder.glob("cffi_peer*.so"))
    spec = importlib.util.spec_from_file_location("cffi_peer", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ffi: cffi.FFI = module.ffi
    send, receive = module.lib.bench_send, module.lib.bench_recv
    end, source, target = (
        ffi.cast("void *", at) for at in (channel, ring.source_at.value, ring.target_at.value)
    )

    def pair() -> None:
        send(end, source, size)
        receive(end, target, size)

    return pair
