# SPDX-License-Identifier: Apache-2.0
"""How long a key and a value may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hvring.guest.records import KEY_SIZE, VALUE_SIZE, PoolLimitError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of UTF-8 in a key and in a value."""

    key: int
    value: int

    def check(self, key: str, value: str = "") -> None:
        """Raises PoolLimitError with what would be right."""
        for what, text, most in (("key", key, self.key), ("value", value, self.value)):
            try:
                length = len(text.encode())
            except UnicodeEncodeError:
                raise PoolLimitError(f"the {what} is not proper Unicode") from None
            if length > most:
                remedy = "; it can be split into several" if what == "value" else ""
                raise PoolLimitError(
                    f"the {what} has {length} bytes, {most} are sure to reach a host{remedy}"
                )


#: What Linux's driver shows a host whole, whatever the letters (PROTOCOL §4.4.2); azure-init keeps to it.
HOST: Final = Limits(254, 1022)
#: What a record holds.
FILE: Final = Limits(KEY_SIZE - 1, VALUE_SIZE - 1)
