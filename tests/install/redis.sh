#!/usr/bin/env bash
# Installs a Redis server for the tests that start their own, and what they put it to trouble with: strace (a slow disk),
# faketime (a clock that is off), openssl (certificates). Run by tests/run; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
for tool in strace faketime openssl; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
[ "${#missing[@]}" = 0 ] || apt_packages "${missing[@]}"

version=$(redis-server --version | sed -n 's/.* v=\([0-9][0-9.]*\).*/\1/p')
case $version in
  [7-9].* | [1-9][0-9]*.*) ;;
  *) fail "redis-server here is version ${version:-unknown}, promptq needs 7.0 or later" \
    "use Debian 12, Ubuntu 24.04 or later, or put a newer redis-server first in PATH, then run tests/run again" ;;
esac
