#!/usr/bin/env bash
# Installs pika, a client that is not ours for the example in deploy/rabbitmq/FOREIGN.md, into target/tools/pika. Run by
# tests/run; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh
venv pika 'pika==1.4.*'
