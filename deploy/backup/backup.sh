#!/usr/bin/env bash
# Backs up one thing while it is in use, into a new folder below DESTINATION, and prints that folder:
#   backup.sh [--keep N] sqlite FILE DESTINATION        the embedded queue, or the ledger in a file; with FILE.store
#   backup.sh [--keep N] redis DIR DESTINATION          DIR: the server's own `dir`; redis-cli reaches it by REDIS_URL
#   backup.sh [--keep N] rabbitmq - DESTINATION         definitions: users, rights, queues; run where rabbitmqctl works
#   backup.sh [--keep N] results DIR DESTINATION        a store in a folder (file://)
# A backup that was interrupted is not there; the next run takes away what is left of it. --keep takes older ones of
# the same kind away, once the new one is whole.
set -euo pipefail
umask 077
. "$(dirname "$0")/lib.sh"

usage() { fail "$1" "backup.sh [--keep N] sqlite|redis|rabbitmq|results SOURCE DESTINATION"; }

keep=
if [ "${1-}" = --keep ]; then
  keep=${2-}
  case $keep in '' | *[!0-9]* | 0) usage "--keep wants a number from 1" ;; esac
  shift 2
fi
[ $# = 3 ] || usage "three words are needed: what, from where, and where to"
kind=$1 source=$2 destination=$3

# The copy is a transaction of SQLite's: of one moment, whatever is written meanwhile.
sqlite() {
  need sqlite3
  [ -f "$source" ] || fail "no file $source" "name the file of the URL sqlite://…"
  case $1$source in *\'*) fail "a quote in $source or $1" "use paths without" ;; esac
  sqlite3 -cmd '.timeout 60000' -readonly "$source" "VACUUM INTO '$1/queue.db'" >/dev/null ||
    fail "cannot copy $source" "see the line above"
  [ "$(sqlite3 "$1/queue.db" 'PRAGMA integrity_check')" = ok ] ||
    fail "the copy of $source is damaged" "look at the disk; promptq doctor looks at the file itself"
  rm -f "$1"/queue.db-*
  # After the file: so no record is without its answer.
  [ ! -d "$source.store" ] || objects "$source.store" "$1/store"
}

# The password goes by the environment: a list of processes shows what an address holds.
redis_says() (
  [ -z "${REDIS_PASSWORD-}" ] || export REDISCLI_AUTH=$REDIS_PASSWORD
  said=$(redis-cli ${REDIS_USER:+--user "$REDIS_USER"} --no-auth-warning -e -u "${REDIS_URL:-redis://127.0.0.1:6379}" "$@" 2>&1) ||
    fail "the server does not do $1: ${said%%$'\n'*}" "set REDIS_URL (without a password), REDIS_USER and REDIS_PASSWORD"
  printf '%s\n' "${said//$'\r'/}"
)

# info NAME…: what INFO says of each, in one word.
info() {
  local said name
  said=$(redis_says INFO persistence) || exit 1
  for name in "$@"; do printf '%s' "$said" | sed -n "s/^$name://p"; done | tr -d '\n'
}

# A rewrite first, so that the copy is small; then every file that the manifest names. Files of the log only grow, or go
# with a new manifest, in which case the copy is begun anew.
redis() {
  need redis-cli
  local enabled folder manifest before name try deadline busy=1
  local hint="name the folder that redis-cli CONFIG GET dir tells of the server at REDIS_URL"
  enabled=$(info aof_enabled)
  [ "$enabled" = 1 ] || fail "the server keeps no log of what it is told (appendonly no)" "see deploy/redis/README.md"
  folder=$(find "$source" -mindepth 1 -maxdepth 1 -type d -name "${REDIS_APPENDDIR:-appendonlydir}")
  [ -n "$folder" ] || fail "no log in $source" "$hint; set REDIS_APPENDDIR if appenddirname is another"
  manifest=$(find "$folder" -maxdepth 1 -name '*.manifest')
  [ -f "$manifest" ] || fail "there is no manifest in $folder, or more than one" "$hint; what another server left beside its log, move away"
  before=$(cat "$manifest")
  redis_says BGREWRITEAOF >/dev/null
  deadline=$((SECONDS + ${REDIS_REWRITE_SECONDS:-900}))
  until [ "$busy" = 00ok ] || [ "$busy" = 00err ]; do
    [ "$SECONDS" -lt "$deadline" ] || fail "the server's rewrite takes too long" "raise REDIS_REWRITE_SECONDS"
    sleep 0.2
    busy=$(info aof_rewrite_in_progress aof_rewrite_scheduled aof_last_bgrewrite_status)
  done
  [ "$busy" = 00ok ] || fail "the server's rewrite failed" "its log says why"
  # A rewrite makes a new one.
  [ "$(cat "$manifest")" != "$before" ] ||
    fail "the server did not rewrite the log in $source" "$hint"
  mkdir "$1/aof"
  for try in 1 2 3 4 5; do
    rm -f "$1"/aof/*
    cp "$manifest" "$1/aof/"
    if sed -n 's/^file \([^ ]*\) .* type [bi]$/\1/p' "$manifest" | while IFS= read -r name; do
      cp "$folder/$name" "$1/aof/" || exit 1
    done && cmp -s "$manifest" "$1/aof/${manifest##*/}"; then break; fi
    [ "$try" != 5 ] || fail "the log cannot be copied, or is rewritten again and again" "see the lines above, or try when the server has less to do"
  done
  basename "$folder" >"$1/folder"
}

# Messages are not in it: what became of jobs is in the ledger, which is backed up by itself.
rabbitmq() {
  local ctl=${RABBITMQCTL:-rabbitmqctl}
  need "$ctl"
  # Run as root it writes as a user of its own, who may not write here.
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
  [ "$(id -u)" != 0 ] || chown rabbitmq "$out"
  "$ctl" --silent export_definitions "$out/definitions.json" >&2 || fail "rabbitmqctl cannot export definitions" "run it on the server's host, as root or rabbitmq"
  cp "$out/definitions.json" "$1/definitions.json"
  grep -q '"vhosts"' "$1/definitions.json" || fail "what rabbitmqctl exported are no definitions" "run rabbitmqctl export_definitions by hand"
}

results() {
  [ -d "$source" ] || fail "no folder $source" "name the folder of the URL file://…"
  objects "$source" "$1/store"
}

# objects FROM TO: a store while it is in use: objects are written whole, under names of their own, and never changed.
objects() {
  local try trouble
  mkdir "$2"
  for try in 1 2 3; do
    trouble=$(cp -a "$1/." "$2/" 2>&1) && break
    # One that was being written has another name by now.
    [ "$try" != 3 ] || fail "cannot copy $1: ${trouble##*$'\n'}" "see whether this user may read all of it"
  done
}

case $kind in sqlite | redis | rabbitmq | results) ;; *) usage "$kind is nothing that can be backed up" ;; esac
need flock sha256sum
mkdir -p "$destination"
exec 9>>"$destination/.lock"
flock -n 9 || fail "another backup into $destination is at work" "wait for it, or use another folder"
rm -rf "$destination"/.part-*
name=$kind-$(date -u +%Y%m%dT%H%M%S.%3NZ)
[ ! -e "$destination/$name" ] || fail "$destination/$name is there already" "run it again; nothing is written over"
part=$destination/.part-$name
mkdir "$part"
"$kind" "$part"
printf '%s\n' "$kind" >"$part/KIND"
sums "$part" >"$part/SHA256SUMS"
sync -f "$part"
mv -T "$part" "$destination/$name"
sync -f "$destination"
if [ -n "$keep" ]; then
  find "$destination" -mindepth 1 -maxdepth 1 -type d -name "$kind-*Z" | LC_ALL=C sort -r | tail -n +"$((keep + 1))" |
    while IFS= read -r old; do rm -rf "$old"; done
fi
printf '%s\n' "$destination/$name"
