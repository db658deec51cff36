#!/usr/bin/env bash
# Puts a backup back where nothing is; the server, and everything of promptq's, is stopped meanwhile (RabbitMQ runs):
#   restore.sh sqlite BACKUP FILE
#   restore.sh redis BACKUP DIR          DIR: the server's own `dir`
#   restore.sh rabbitmq BACKUP -         into a server without the users, virtual hosts, queues and policies of the backup; its
#                                        parameters and the limits of its virtual hosts are set as they were
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
  PYTHONIOENCODING=utf-8 python3 -c 'import json, sys
for one in json.load(open(sys.argv[1], encoding="utf-8")).get(sys.argv[2], []):
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
    [ -z "$name" ] || ! grep -qxF -- "$name" <<<"$3" ||
      fail "the server has $name already ($1)" "nothing is written over: use an empty server, or delete it there"
  done <<<"$2"
}

# new_guest: that guest is as in every new server.
new_guest() {
  local rights
  rights=$(says list_user_permissions guest) || exit 1
  [ "$rights" = $'/\t.*\t.*\t.*' ] && "$ctl" --silent authenticate_user guest guest >/dev/null 2>&1
}

rabbitmq() {
  local ctl=${RABBITMQCTL:-rabbitmqctl} users vhosts queues policies there
  need "$ctl" python3
  users=$(names users)
  vhosts=$(names vhosts)
  queues=$(names queues /)
  policies=$(names policies /)
  there=$(says list_users) || exit 1
  if grep -qxF guest <<<"$users" && grep -qxF $'guest\t[administrator]' <<<"$there" && new_guest; then
    users=$(grep -vxF guest <<<"$users" || true)
  fi
  absent users "$users" "$(cut -f 1 <<<"$there")"
  there=$(says list_vhosts) || exit 1
  absent vhosts "$(grep -vxF / <<<"$vhosts" || true)" "$there"
  # Every new server has this one, and none of these in it.
  if grep -qxF / <<<"$there"; then
    there=$(says list_queues --vhost / name) || exit 1
    absent queues "$queues" "$there"
    there=$(says list_policies --vhost /) || exit 1
    absent policies "$policies" "$(cut -f 2 <<<"$there")"
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
