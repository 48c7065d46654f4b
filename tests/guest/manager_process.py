# SPDX-License-Identifier: Apache-2.0
"""A real systemd, as a user's manager, that nobody outside can see: in mount, process and control-group namespaces.

``unshare --mount --pid --cgroup --fork --mount-proc python manager_process.py FOLDER``, in a control group made for it.
FOLDER/units holds the units.  Takes command lines as JSON on stdin, and answers [status, output] as JSON on stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

SYSTEMD = "/lib/systemd/systemd"
TARGETS = ("default", "basic", "sockets", "paths", "timers", "shutdown", "exit", "graphical-session")


def main() -> None:
    folder = Path(sys.argv[1])
    units, runtime = folder / "units", folder / "runtime"
    runtime.mkdir(mode=0o700, exist_ok=True)
    for name in TARGETS:
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n", encoding="utf-8")
    # The control groups are only those of this namespace; /run is empty, and says that systemd runs.
    subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    os.makedirs("/run/systemd/system")
    environment = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LANG")},
        "XDG_RUNTIME_DIR": str(runtime),
        "SYSTEMD_UNIT_PATH": str(units),
        "HOME": str(folder),
    }
    with open(folder / "manager.log", "wb") as log:
        manager = subprocess.Popen(
            [SYSTEMD, "--user", "--log-target=console", "--unit=default.target"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        give_up_at = time.monotonic() + 30
        while not (runtime / "systemd" / "private").exists() and time.monotonic() < give_up_at:
            if manager.poll() is not None:
                sys.exit((folder / "manager.log").read_text(encoding="utf-8", errors="replace"))
            time.sleep(0.02)
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            done = subprocess.run(
                json.loads(line), env=environment, capture_output=True, text=True, timeout=60, check=False
            )
            print(json.dumps([done.returncode, (done.stdout + done.stderr).strip()]), flush=True)
    finally:
        manager.kill()


if __name__ == "__main__":
    main()
