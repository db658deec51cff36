#!/usr/bin/env bash
# Builds s3s-fs, an S3 server that checks signatures, into target/tools/s3s. Run by tests/run; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh
crate s3s s3s-fs 0.14.1 --features binary
