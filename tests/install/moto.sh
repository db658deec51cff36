#!/usr/bin/env bash
# Installs moto, a fast S3 server, into target/tools/moto. Run by tests/run; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh
venv moto 'moto[server]==5.1.*'
