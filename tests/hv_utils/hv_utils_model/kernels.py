# SPDX-License-Identifier: Apache-2.0
"""Where kernels differ (PROTOCOL §10.5)."""

from __future__ import annotations

import errno
from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """``second_registration``: errno of KVP's second one while the first one's answer is unread, 0 for success."""

    fcopy: bool = True
    second_registration: int = 0
    suspends: bool = True
    drops_unknown_types: bool = True
    signed_numbers: bool = False
    # Whether a character that does not fit any more ends the text, or smaller ones behind it go on.
    full_is_full: bool = True


DEBIAN_12 = Kernel()  # 6.1.176
DEBIAN_13 = Kernel(fcopy=False, second_registration=errno.EFAULT)  # 6.12.117; 7.3.4 is the same
OLD = Kernel(suspends=False, drops_unknown_types=False, signed_numbers=True, full_is_full=False)  # 4.19
