# SPDX-License-Identifier: Apache-2.0
"""A real VMBus from Debian packages: what it is made of and how it is started; ../README.md explains the layers."""

from __future__ import annotations


class UnavailableError(Exception):
    """The lab cannot run on this machine now; the text says why. Runs are skipped, not failed."""
