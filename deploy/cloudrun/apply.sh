#!/usr/bin/env bash
# Puts one of the documents beside it onto Cloud Run, filled in from the environment:
#   PROJECT=… REGION=… IMAGE=… BROKER_URL=… … apply.sh service|worker-pool|job [NAME]
# README.md says which variables there are. PRINT=1 shows the document and sends nothing.
set -euo pipefail
cd "$(dirname "$0")"

fail() {
  printf 'error[cloud-run]: %s\n  hint: %s\n' "$1" "$2" >&2
  exit 1
}

kind=${1-} name=${2-}
case $kind in
  service) collection=services name=${name:-promptq-gateway} ;;
  worker-pool) collection=workerPools name=${name:-promptq-worker} ;;
  job) collection=jobs name=${name:-promptq-batch} ;;
  *) fail "${kind:-nothing} is none of these" "apply.sh service|worker-pool|job [NAME]" ;;
esac
export QUEUE=${QUEUE:-default} BROKER_USER=${BROKER_USER:-promptq} NETWORK=${NETWORK:-default} SUBNETWORK=${SUBNETWORK:-default}
export LEDGER_URL=${LEDGER_URL-} STORE_URL=${STORE_URL-}
case ${BROKER_URL-} in
  redis://* | rediss://* | amqp://* | amqps://*) ;;
  *) fail "BROKER_URL is ${BROKER_URL:-not set}" "name a Redis or a RabbitMQ: a file goes with its instance" ;;
esac
case $BROKER_URL$LEDGER_URL in *@*) fail "a URL holds a user" "put the password into Secret Manager, and its name into BROKER_PASSWORD_SECRET" ;; esac

document=$(python3 -c 'import json, os, re, sys
missing = set()
def fill(value):
    if isinstance(value, dict): return {key: fill(one) for key, one in value.items()}
    if isinstance(value, list): return [fill(one) for one in value]
    if not isinstance(value, str): return value
    def said(found):
        if found[1] not in os.environ: missing.add(found[1])
        return os.environ.get(found[1], "")
    return re.sub(r"\$\{([A-Z_]+)\}", said, value)
document = fill(json.load(open(sys.argv[1])))
if missing: sys.exit(" ".join(sorted(missing)))
print(json.dumps(document, indent=2))' "$kind.json" 2>&1) || fail "not set: $document" "set them, see README.md"
if [ -n "${PRINT-}" ]; then
  printf '%s\n' "$document"
  exit
fi
: "${PROJECT:?set PROJECT}" "${REGION:?set REGION}"
api=${RUN_API:-https://run.googleapis.com}/v2/projects/$PROJECT/locations/$REGION/$collection
token=$(gcloud auth print-access-token) || fail "gcloud has no access token" "run: gcloud auth login"
# The token goes by standard input: a list of processes shows arguments.
send() {
  local method=$1 url=$2
  printf 'header = "Authorization: Bearer %s"\n' "$token" |
    curl --silent --show-error --fail-with-body --config - --request "$method" --header 'Content-Type: application/json' --data "$document" "$url"
}
# Makes it where there is none.
send PATCH "$api/$name?allowMissing=true" || fail "Cloud Run refused $name" "see the lines above"
