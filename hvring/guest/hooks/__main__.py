# SPDX-License-Identifier: Apache-2.0
"""Run as a file, by ``python -I -S``: the process that runs the hooks of one backup."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.abspath(f"{__file__}/../../../.."))
    from hvring.guest.hooks.runner import main

    main(sys.argv[1:])
