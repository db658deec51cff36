#!/usr/bin/env bash
# Installs promtool, which says what is wrong with metrics and alert rules. Its daemon is not started. Run by tests/run; safe
# to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh
command -v promtool >/dev/null || apt_packages prometheus
