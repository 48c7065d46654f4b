# SPDX-License-Identifier: Apache-2.0
"""Runs cloud-init's own reporter on a pool file; started by test_cloud_init.py with Debian's Python.

Arguments: the folder with cloud-init, the pool file, and the names of events to publish. Prints what
cloud-init then reads from the file.
"""

import json
import sys

sys.path.insert(0, sys.argv[1])

from cloudinit.reporting import events, handlers


def main() -> None:
    reporter = handlers.HyperVKvpReportingHandler(kvp_file_path=sys.argv[2])
    for name in sys.argv[3:]:
        reporter.publish_event(events.ReportingEvent("start", name, f"{name} " * 300))
    reporter.flush()
    items = [[item["key"], item["value"]] for item in reporter._iterate_kvps(0)]
    print(json.dumps(items))


main()
