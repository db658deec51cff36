#!/usr/bin/env bash
# Puts a backup back where nothing is; the server, and everything of promptq's, is stopped meanwhile (RabbitMQ runs):
#   restore.sh sqlite BACKUP FILE
#   restore.sh redis BACKUP DIR          DIR: the server's own `dir`
#   restore.sh rabbitmq BACKUP -         into a server without the users, virtual hosts, queues and policies of the backup
#   restore.sh results BACKUP DIR
# It writes over nothing. Interrupted, it has put back nothing, and the same command does it.
set -euo pipefail
umask 077
. "$(dirname "$0")/lib.sh"

usage() { fail "$1" "restore.sh sqlite|redis|rabbitmq|results BACKUP TARGET"; }

# free PATH…: that nothing is there.
free() {
  local path
  for path in "$@"; do
    [ ! -e "$path" ] || fail "$path is there already" "nothing is written over: move it away, it may be needed yet"
  done
}

# put FROM TO: a copy with the owner of the folder it goes into, on the disk before it has its name.
put() {
  local from=$1 to=$2 part
  part=$(dirname "$to")/.restore-$(basename "$to")
  rm -rf "$part"
  cp -a "$from" "$part"
  chown -R --reference="$(dirname "$to")" "$part" 2>/dev/null || true
  sync -f "$part"
  mv -n -T "$part" "$to"
  [ ! -e "$part" ] || fail "$to is there already" "nothing is written over"
  sync -f "$(dirname "$to")"
}

sqlite() {
  # A log beside a file that is not its own would be played into it.
  free "$target" "$target-wal" "$target-shm" "$target-journal"
  mkdir -p "$(dirname "$target")"
  # The file last: with it there, all is. A store that an interrupted restore has put there is left.
  if [ -d "$backup/store" ] && ! diff -rq "$backup/store" "$target.store" >/dev/null 2>&1; then
    free "$target.store"
    put "$backup/store" "$target.store"
  fi
  put "$backup/queue.db" "$target"
}

redis() {
  [ -d "$target" ] || fail "no folder $target" "make it, for the user of the server"
  local folder
  folder=$(cat "$backup/folder")
  free "$target/$folder" "$target/dump.rdb"
  put "$backup/aof" "$target/$folder"
}

# names KEY [VHOST]: what the definitions name under it.
names() {
  python3 -c 'import json, sys
for one in json.load(open(sys.argv[1])).get(sys.argv[2], []):
    if one.get("vhost") == (sys.argv[3:] or [None])[0]: print(one["name"])' "$backup/definitions.json" "$@"
}

# says WORD…: what the server answers, without a table's head.
says() {
  "$ctl" --silent --no-table-headers "$@" 2>/dev/null ||
    fail "rabbitmqctl cannot ask the server" "start it, and run this on its host, as root or rabbitmq"
}

# absent WHAT NAMES THERE: that the server has none of those names.
absent() {
  local name
  while IFS= read -r name; do
    [ -z "$name" ] || ! printf '%s\n' "$3" | grep -qxF -- "$name" ||
      fail "the server has $name already ($1)" "nothing is written over: use an empty server, or delete it there"
  done <<<"$2"
}

# new_guest: that guest is as in every new server.
new_guest() {
  "$ctl" --silent authenticate_user guest guest >/dev/null 2>&1 &&
    [ "$(says list_user_permissions guest)" = $'/\t.*\t.*\t.*' ]
}

rabbitmq() {
  local ctl=${RABBITMQCTL:-rabbitmqctl} users vhosts there
  need "$ctl" python3
  there=$(says list_users | cut -f 1) || exit 1
  users=$(names users)
  if printf '%s\n' "$users" | grep -qxF guest && printf '%s\n' "$there" | grep -qxF guest && new_guest; then
    there=$(printf '%s\n' "$there" | grep -vxF guest || true)
  fi
  absent users "$users" "$there"
  there=$(says list_vhosts) || exit 1
  vhosts=$(names vhosts)
  absent vhosts "$(printf '%s\n' "$vhosts" | grep -vxF / || true)" "$there"
  # Every new server has this one, and nothing in it.
  if printf '%s\n' "$there" | grep -qxF /; then
    there=$(says list_queues --vhost / name) || exit 1
    absent queues "$(names queues /)" "$there"
    there=$(says list_policies --vhost / | cut -f 2) || exit 1
    absent policies "$(names policies /)" "$there"
  fi
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
  cp "$backup/definitions.json" "$out/definitions.json"
  # Run as root it reads as a user of its own.
  [ "$(id -u)" != 0 ] || chown -R rabbitmq "$out"
  "$ctl" --silent import_definitions "$out/definitions.json" >&2 || fail "rabbitmqctl cannot import the definitions" "see the lines above"
}

results() {
  [ ! -d "$target" ] || rmdir "$target" 2>/dev/null || free "$target"
  mkdir -p "$(dirname "$target")"
  put "$backup/store" "$target"
}

[ $# = 3 ] || usage "three words are needed: what, from where, and where to"
kind=$1 backup=$2 target=$3
case $kind in sqlite | redis | rabbitmq | results) ;; *) usage "$kind is nothing that can be restored" ;; esac
need sha256sum
whole "$backup" "$kind"
"$kind"
printf 'restored %s from %s\n' "$kind" "$backup" >&2
