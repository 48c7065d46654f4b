# SPDX-License-Identifier: Apache-2.0
"""Array layouts for the batch API; the only place of this floor that needs NumPy, and only when called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def descriptor_dtype() -> np.dtype[Any]:
    """One row per packet of ``Channel.recv_batch``: where the payload is, and its descriptor; 24 bytes.

    ImportError if there is no NumPy.
    """
    try:
        import numpy as np
    except ModuleNotFoundError as missing:
        raise ImportError("batches in arrays need NumPy: pip install numpy, or python3-numpy") from missing

    return np.dtype(
        [
            ("offset", "<u4"),
            ("length", "<u4"),
            ("type", "<u2"),
            ("flags", "<u2"),
            ("reserved", "<u4"),
            ("transaction_id", "<u8"),
        ]
    )
