# SPDX-License-Identifier: Apache-2.0
"""How GUIDs are written here: in lower case, without braces."""

from __future__ import annotations

import re
from typing import Final

_GUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def normal_guid(text: str) -> str:
    """Lower case without braces, as everywhere in hvring; text that is no GUID only loses its case."""
    return text.strip("{}").lower()


def is_guid(text: str) -> bool:
    """Whether this is a GUID in lower case without braces."""
    return _GUID.fullmatch(text) is not None
