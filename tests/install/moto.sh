#!/usr/bin/env bash
# Installs moto, a real S3 server for the store's tests, into target/tools/moto. Run by tests/run; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh
venv moto 'moto[server]==5.1.*'
