#!/usr/bin/env bash
# Installs redis-py, a client that is not ours for the tests of foreign producers, into target/tools/redis_py. Run by
# tests/run; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh
venv redis_py 'redis==8.1.*'
