# SPDX-License-Identifier: Apache-2.0
# What the steps of a walk are made of; to be sourced, with $suite.
rows=() failed=0

# step TITLE COMMAND…: ok if the command ends with 0; what it printed is shown if not
step() {
  if "${@:2}" >/root/step.log 2>&1; then
    rows+=("$(printf '%-10s %-46s %s' "$suite" "$1" ok)")
  else
    rows+=("$(printf '%-10s %-46s %s' "$suite" "$1" FAILED)")
    failed=1
    printf '%s: %s: FAILED\n%s\n' "$suite" "$1" "$(tail -40 /root/step.log)"
  fi
}
# says PATTERN COMMAND…: it ends with 0, and a line that it prints has the pattern
says() {
  local out
  out=$("${@:2}" 2>&1) || { printf '%s: ended with %d\n%s\n' "${*:2}" $? "$out"; return 1; }
  grep -Eq -e "$1" <<<"$out" || { printf '%s: nothing like %s in:\n%s\n' "${*:2}" "$1" "$out"; return 1; }
}
# until_says PATTERN COMMAND…: within a minute
until_says() {
  local tries
  for tries in {1..300}; do says "$@" >/dev/null && return; sleep 0.2; done
  says "$@"
}
# what one would be asked is kept
apt() { apt-get -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@"; }
set_to() { sed -i "s|^#\?$1 = .*|$1 = $2|" /etc/hvring.toml && grep -q "^$1 = " /etc/hvring.toml; }
at_host() { hvring host --socket "$host" "$@"; }
# what was seen, as a table
report() {
  printf '%s\n' "${rows[@]}"
  exit $failed
}
