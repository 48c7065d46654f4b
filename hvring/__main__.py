# SPDX-License-Identifier: Apache-2.0
"""``python -m hvring`` is ``hvring``."""

import sys

from hvring.cli import main

sys.exit(main())
