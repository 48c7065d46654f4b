# SPDX-License-Identifier: Apache-2.0
"""A logind in a process of its own, on a bus of the test's: ``fake_logind.py ADDRESS`` and its answers as JSON.

``answers``: method to its answer, an error's name where that begins with "org."; a method that is not there is unknown,
one whose answer is null is never answered.  Each call is a line on standard output, and so is the end of a lock.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

from jeepney import HeaderFields, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection


def main() -> None:
    answers: dict[str, Any] = json.loads(sys.argv[2])
    connection = open_dbus_connection(sys.argv[1], enable_fds=True)
    connection.send_and_get_reply(message_bus.RequestName("org.freedesktop.login1"))
    print("ready", flush=True)
    lock = -1
    while True:
        watched = [connection.sock, *([lock] if lock >= 0 else [])]
        ready, _, _ = select.select(watched, [], [])
        if lock in ready:  # all that can be read of it is its end
            print("released", flush=True)
            os.close(lock)
            lock = -1
            continue
        message = connection.receive()
        if message.header.message_type is not MessageType.method_call:
            continue
        name = message.header.fields[HeaderFields.member]
        if name == "Get":
            name = message.body[1]
        print(name, *(str(word) for word in message.body), flush=True)
        if name not in answers:
            connection.send(new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "s", ("what?",)))
            continue
        answer = answers[name]
        if isinstance(answer, dict):  # by the first argument
            answer = answer.get(str(message.body[0]), "org.freedesktop.DBus.Error.InvalidArgs")
        if answer is None:
            continue
        if isinstance(answer, str) and answer.startswith("org."):
            connection.send(new_error(message, answer, "s", (f"not {name}",)))
        elif name == "Inhibit":
            lock, given = os.pipe2(os.O_CLOEXEC)
            connection.send(new_method_return(message, "h", (given,)))
            os.close(given)
        elif name.startswith("Preparing"):
            connection.send(new_method_return(message, "v", (("b", answer),)))
        elif name.startswith("Can"):
            connection.send(new_method_return(message, "s", (answer,)))
        else:
            connection.send(new_method_return(message))


if __name__ == "__main__":
    main()
