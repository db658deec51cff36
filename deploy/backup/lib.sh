# shellcheck shell=bash
# What backup.sh and restore.sh share: one clear error, checksums, and a backup that is there whole or not at all.
# Sourced by bash.

# fail WHAT HINT: ends with one clear message.
fail() {
  printf 'error[backup]: %s\n  hint: %s\n' "$1" "$2" >&2
  exit 1
}

# need PROGRAM…: that these are installed.
need() {
  local program
  for program in "$@"; do
    command -v "$program" >/dev/null || fail "$program is not installed" "install it on this host"
  done
}

# sums FOLDER: the checksums of every file in a backup, in one order.
sums() {
  (cd "$1" && find . -type f ! -name SHA256SUMS -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum)
}

# whole BACKUP: that it is of this kind, finished, and as it was written.
whole() {
  local backup=$1 kind=$2
  [ -f "$backup/SHA256SUMS" ] || fail "$backup is no backup" "name one of the folders that backup.sh printed"
  [ "$(cat "$backup/KIND" 2>/dev/null)" = "$kind" ] ||
    fail "$backup holds $(cat "$backup/KIND" 2>/dev/null || echo 'something else'), not $kind" "see what folders are there: ls $(dirname "$backup")"
  sums "$backup" | cmp -s - "$backup/SHA256SUMS" ||
    fail "$backup is damaged: its files and its checksums differ" "take another one: ls $(dirname "$backup")"
}
