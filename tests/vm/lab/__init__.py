# SPDX-License-Identifier: Apache-2.0
"""A real VMBus from Debian packages: its parts and how they are started; ../README.md explains it."""

from __future__ import annotations


class UnavailableError(Exception):
    """The lab cannot run on this machine now; the text says why. Runs are skipped, not failed."""
