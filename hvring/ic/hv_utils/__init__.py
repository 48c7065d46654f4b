# SPDX-License-Identifier: Apache-2.0
"""What hv_utils says over its character devices, and what it wants to hear (PROTOCOL §10): no bytes of VMBus.

One module per service.  The kernel has translated what the host sent before it is seen here: texts are UTF-8, there are
no headers, no ids and no lengths.
"""

from __future__ import annotations

from typing import Final

from hvring.ic.hv_utils import fcopy, kvp, vss
from hvring.ic.hv_utils.dialect import Dialect

DIALECTS: Final[dict[str, Dialect]] = {"kvp": kvp, "vss": vss, "fcopy": fcopy}
"""Of the services that have such a device, by their names."""

__all__ = ["DIALECTS", "Dialect"]
