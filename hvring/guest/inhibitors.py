# SPDX-License-Identifier: Apache-2.0
"""Programs that forbid a shutdown for a while, by systemd's locks."""

from __future__ import annotations

import os


def blocking(directory: str, what: str) -> str | None:
    """Who holds a lock of the kind that forbids ``what`` (shutdown, sleep), in words; None if nobody does.

    logind lets root pass by itself, so somebody has to ask: the administrator did mean it.
    """
    try:
        names = os.listdir(directory)
    except OSError:
        return None
    for name in sorted(names):
        if not name.isdecimal():  # beside each is a pipe, which must not be opened: that may wait for ever
            continue
        try:
            with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as file:
                fields = dict(line.rstrip("\n").partition("=")[::2] for line in file)
        except OSError:  # given back meanwhile
            continue
        if fields.get("MODE") in ("block", "block-weak") and what in fields.get("WHAT", "").split(":"):
            return f"{fields.get('WHO', 'a program')} forbids it: {fields.get('WHY', 'no reason given')}"
    return None
