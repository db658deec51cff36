#!/usr/bin/env bash
# Makes the folder of secrets that compose.yaml mounts, once: passwords at random, what Redis and RabbitMQ are told of
# them as hashes, and OPENAI_API_KEY, where it is set. An existing folder is left as it is.
#   secrets.sh [FOLDER]
set -euo pipefail
umask 077
cd "$(dirname "$0")"

fail() {
  printf 'error[secrets]: %s\n  hint: %s\n' "$1" "$2" >&2
  exit 1
}

folder=${1:-secrets}
[ ! -e "$folder" ] || fail "$folder is there already" "nothing is written over: passwords in use would be lost; move it away for new ones"
for program in openssl base64 python3; do
  command -v "$program" >/dev/null || fail "$program is not installed" "install it"
done

part=$folder.part
rm -rf "$part"
mkdir -p "$part"
for name in redis rabbitmq grafana; do
  openssl rand -hex 24 | tr -d '\n' >"$part/$name-password"
done
printf '%s' "${OPENAI_API_KEY-}" >"$part/openai-api-key"

# The shipped rights; nobody else may come in.
hash=$(sha256sum <"$part/redis-password" | cut -d ' ' -f 1)
{
  printf 'user default off\n'
  sed -n "s/^user promptq .*/& #$hash/p" ../redis/users.acl
} >"$part/redis-users"

# One user with the rights of the three that promptq's programs have, so that each may make the queues it uses.
salt=$(openssl rand -hex 4)
password_hash=$({
  printf '%b' "$(printf '%s' "$salt" | sed 's/../\\x&/g')"
  {
    printf '%b' "$(printf '%s' "$salt" | sed 's/../\\x&/g')"
    cat "$part/rabbitmq-password"
  } | openssl dgst -sha256 -binary
} | base64 | tr -d '\n')
PASSWORD_HASH=$password_hash python3 -c 'import json, os, sys
shipped = json.load(open("../rabbitmq/definitions.json"))
vhost = shipped["vhosts"][0]["name"]
algorithm = shipped["users"][0]["hashing_algorithm"]
rights = [one for one in shipped["permissions"] if one["user"] in ("promptq-admin", "promptq-worker", "promptq-producer")]
either = lambda right: "|".join("(%s)" % one[right] for one in rights)
json.dump({
    "vhosts": shipped["vhosts"],
    "users": [{"name": "promptq", "password_hash": os.environ["PASSWORD_HASH"], "hashing_algorithm": algorithm, "tags": ""}],
    "permissions": [dict(user="promptq", vhost=vhost, **{right: either(right) for right in ("configure", "write", "read")})],
}, sys.stdout, indent=2)' >"$part/rabbitmq-definitions"
# Containers read them as users of their own, and get at them through this folder alone.
chmod 444 "$part"/*
sync -f "$part"
mv -T "$part" "$folder"
printf '%s\n' "$folder"
