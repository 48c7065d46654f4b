# SPDX-License-Identifier: Apache-2.0
"""The words on a control socket: a line of JSON there, a line of JSON back.

Request: ``{"verb": NAME, "args": {…}}``; ``args`` may be missing.  Answer: ``{"result": {…}}``, or
``{"error": TEXT, "kind": WORD}``.  Requests of one connection follow one another.  After ``watch`` there are no more:
``{"changed": […], "result": {…}}`` comes with each change, until one side closes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from hvring.daemon import forms
from hvring.errors import HvringError

DIRECTORY: Final = "/run/hvring"
SUFFIX: Final = ".sock"
LARGEST_REQUEST: Final = 64 * 1024  # bytes of a line, its end included
WATCH: Final = "watch"

Args = Mapping[str, Any]


class ControlError(HvringError):
    """What was asked for is not done; ``kind`` is a word for programs that asked."""

    def __init__(self, message: str, kind: str = "failed") -> None:
        super().__init__(message)
        self.kind = kind


def line(message: Mapping[str, Any]) -> bytes:
    """For the other side: ASCII, and nothing in it that some reader of JSON does not understand."""
    return json.dumps(forms.clean(message), allow_nan=False).encode() + b"\n"


def parse(request: bytes) -> tuple[str, Args]:
    """Verb and arguments.  Raises ControlError."""
    try:
        found = json.loads(request)
    except (ValueError, RecursionError):
        raise ControlError("the request is no line of JSON", "request") from None
    if not isinstance(found, dict) or not isinstance(found.get("verb"), str):
        raise ControlError("the request is no object with a verb", "request")
    args = found.get("args", {})
    if not isinstance(args, dict):
        raise ControlError("the arguments are no object", "request")
    return found["verb"], args
