#!/usr/bin/env bash
# Installs the peers that promptq is measured beside: Python's and Node's below target/tools, Sidekiq as a Debian package,
# apalis built from its own lock file. All of them, or those it is given: benches/peers/install.sh [python] [bullmq]
# [sidekiq] [apalis]. Safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh

python() {
  local pins
  mapfile -t pins <benches/peers/python.txt
  # The list is whole, so nothing else may come with it.
  venv peers --no-deps "${pins[@]}"
}

bullmq() {
  local home=target/tools/bullmq
  command -v node >/dev/null || apt_packages nodejs
  command -v npm >/dev/null || apt_packages npm
  cmp -s benches/peers/package-lock.json "$home/.installed" && return
  echo "installing bullmq into $home" >&2
  rm -rf "$home"
  mkdir -p "$home"
  cp benches/peers/package.json benches/peers/package-lock.json "$home"
  npm ci --prefix "$home" --ignore-scripts --no-audit --no-fund --loglevel error >&2 ||
    fail "npm cannot install bullmq" "see the lines above; a network or a package registry is needed once"
  cp benches/peers/package-lock.json "$home/.installed"
}

sidekiq() {
  ruby -e 'gem "sidekiq"' 2>/dev/null || apt_packages ruby-sidekiq
}

apalis() {
  CARGO_TARGET_DIR=target/tools/apalis cargo build --quiet --release --locked --manifest-path benches/peers/apalis/Cargo.toml >&2 ||
    fail "apalis cannot be built" "see the lines above; a network or a package registry is needed once"
}

[ $# -gt 0 ] || set -- python bullmq sidekiq apalis
for peer in "$@"; do
  case $peer in
    python | bullmq | sidekiq | apalis) "$peer" ;;
    *) fail "there is no peer '$peer'" "name some of python, bullmq, sidekiq, apalis, or none for all" ;;
  esac
done
