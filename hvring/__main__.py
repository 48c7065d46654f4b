# SPDX-License-Identifier: Apache-2.0
"""``python -m hvring`` is ``hvring``."""

import sys

from hvring.cli import main

if __name__ == "__main__":
    sys.exit(main())
