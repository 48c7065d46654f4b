# SPDX-License-Identifier: Apache-2.0
"""Which of the C peers can be had here."""

from __future__ import annotations

import ctypes

import dpdk
import linux_hv
from peers import Unavailable


def available(*names: str) -> tuple[dict[str, ctypes.CDLL], dict[str, str]]:
    """The libraries that can be had here of those peers (or of all), and why the others cannot."""
    found: dict[str, ctypes.CDLL] = {}
    missing: dict[str, str] = {}
    made = {"DPDK": dpdk.library, "linux_hv": linux_hv.library}
    for name in names or made:
        try:
            found[name] = made[name]()
        except Unavailable as why:
            missing[name] = str(why)
    return found, missing
