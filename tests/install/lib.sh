# shellcheck shell=bash
# What the install scripts share: apt packages, Python environments and programs of crates, each only where missing.
# Sourced by bash.

# fail WHAT HINT: ends with one clear message.
fail() {
  printf 'error[test-tool]: %s\n  hint: %s\n' "$1" "$2" >&2
  exit 1
}

# as_root COMMAND…: runs it as root, or fails when there is no way to.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif sudo -n true 2>/dev/null; then
    sudo -n "$@"
  else
    return 1
  fi
}

# apt_packages NAME…: installs Debian packages without letting their daemons start.
apt_packages() {
  command -v apt-get >/dev/null || fail "cannot install $*: no apt-get here" "install these packages by hand, then run tests/run again"
  local policy=/usr/sbin/policy-rc.d made=false status=0
  if [ ! -e "$policy" ] && printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null; then
    as_root chmod 755 "$policy"
    made=true
  fi
  { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >&2 || status=$?
  if $made; then as_root rm -f "$policy"; fi
  [ "$status" = 0 ] || fail "cannot install $*" "run: sudo apt-get install $*"
}

# venv NAME REQUIREMENT…: a Python environment in target/tools/NAME that holds exactly these, made whole or not at all, and
# anew where the tree was moved: its programs name their interpreter by its whole path.
venv() {
  local name=$1 home stamp
  shift
  home=$PWD/target/tools/$name
  stamp=$home/.installed
  [ "$(cat "$stamp" 2>/dev/null)" = "$home: $*" ] && return
  command -v python3 >/dev/null || apt_packages python3
  python3 -c 'import venv, ensurepip' 2>/dev/null || apt_packages python3-venv
  echo "installing $* into target/tools/$name" >&2
  rm -rf "$home"
  python3 -m venv "$home" >&2 || fail "python3 -m venv $home failed" "see the lines above"
  "$home/bin/pip" install --quiet --disable-pip-version-check "$@" >&2 ||
    fail "pip cannot install $*" "see the lines above; a network or a package index is needed once"
  printf '%s' "$home: $*" >"$stamp"
}

# crate NAME CRATE VERSION OPTION…: the programs of a crate in target/tools/NAME, built apart from the workspace: fast to
# build and not fast to run.
crate() {
  local name=$1 crate=$2 version=$3 home stamp
  shift 3
  home=$PWD/target/tools/$name
  stamp=$home/.installed
  [ "$(cat "$stamp" 2>/dev/null)" = "$crate $version $*" ] && return
  echo "building $crate $version into target/tools/$name" >&2
  rm -rf "$home"
  CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=$home/build \
    cargo install --quiet --locked --debug --root "$home" "$crate" --version "=$version" "$@" >&2 ||
    fail "cargo cannot install $crate $version" "see the lines above; a network or a package registry is needed once"
  rm -rf "$home/build"
  printf '%s' "$crate $version $*" >"$stamp"
}
