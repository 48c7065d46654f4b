#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The extensions with address and undefined-behaviour sanitizers, under the tests of what they are on.
# Usage: tests/sanitize.sh [PYTHON with the test and build requirements]
set -eu
python=$(command -v "${1:-python3}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$root" && git ls-files -z hvring setup.py pyproject.toml README.md LICENSE tests/conftest.py tests/ring tests/channel tests/hostile tests/guest/test_time_feed.py tests/ic/test_request.py tests/ic/test_kvp_in_c.py | xargs -0 cp --parents -t "$work")
cd "$work"
HVRING_SANITIZE=address,undefined "$python" setup.py -q build_ext --inplace >build.log 2>&1 || { cat build.log; exit 1; }
# the interpreter itself is not instrumented: leaks of its own are none of ours
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" PYTHONPATH="$work" PYTHONMALLOC=malloc
export HVRING_STRESS_PACKETS=200000
"$python" -c 'import hvring.ring._ring as r, sys; sys.exit(not r.__file__.startswith(sys.argv[1]))' "$work"
"$python" -m pytest -q tests/ring tests/channel tests/guest/test_time_feed.py tests/ic/test_request.py tests/ic/test_kvp_in_c.py --deselect tests/ring/test_signatures.py::test_the_stubs_say_what_the_extensions_are
