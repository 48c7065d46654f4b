# SPDX-License-Identifier: Apache-2.0
# Chroots of Debian suites, for the scripts here; to be sourced.

# inside [--net] ROOT COMMAND…: in mount and process namespaces of its own, so that nothing is left mounted or running;
# with --net without a network, too
inside() {
  local kinds=(--mount --pid --ipc --uts --fork --kill-child)
  [ "$1" != --net ] || { kinds+=(--net); shift; }
  unshare "${kinds[@]}" -- bash -ec '
    root=$1; shift
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for name in null zero full random urandom tty; do
      touch "$root/dev/$name"
      mount --bind "/dev/$name" "$root/dev/$name"
    done
    mkdir "$root/dev/shm" "$root/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
      ${SOURCE_DATE_EPOCH:+SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH} chroot "$root" "$@"' inside "$@" </dev/null
}

# bare_suite SUITE ROOT [CHROOTS]: what debootstrap calls minbase, updated; from CHROOTS/SUITE.tar, or kept there
bare_suite() {
  if [ -n "${3:-}" ] && [ -e "$3/$1.tar" ]; then
    unpack "$3/$1.tar" "$2"
    return
  fi
  local log
  log=$(debootstrap --variant=minbase "$1" "$2" 2>&1) || { printf '%s\n' "$log"; return 1; }
  # what a power failure would lose is unpacked anew
  echo force-unsafe-io >"$2/etc/dpkg/dpkg.cfg.d/unsafe-io"
  printf 'Acquire::Languages "none";\nAPT::Sandbox::User "root";\n' >"$2/etc/apt/apt.conf.d/90quick"
  cp /etc/resolv.conf "$2/etc/resolv.conf"
  rm -f "$2"/var/cache/apt/archives/*.deb
  inside "$2" apt-get update -qq
  [ -z "${3:-}" ] || keep "$2" "$3/$1.tar"
}

unpack() {
  mkdir -p "$2"
  tar x --numeric-owner -f "$1" -C "$2"
}

# keep ROOT TAR: whole or not at all, whoever else makes it just now
keep() {
  mkdir -p "$(dirname "$2")"
  local part
  part=$(mktemp "$2.XXXX")
  tar c --numeric-owner -f "$part" -C "$1" .
  mv "$part" "$2"
}

# remove_tree DIR: never over a mount, should one have been left
remove_tree() {
  [ ! -d "$1" ] || rm -rf --one-file-system -- "$1"
}
