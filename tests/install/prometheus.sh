#!/usr/bin/env bash
# Installs Prometheus and Alertmanager with promtool and amtool, for the tests of deploy/alerts and deploy/grafana, and
# amlint into target/tools/amlint. No daemon is started. Run by tests/run; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh

missing=()
command -v promtool >/dev/null || missing+=(prometheus)
command -v amtool >/dev/null || missing+=(prometheus-alertmanager)
[ "${#missing[@]}" = 0 ] || apt_packages "${missing[@]}"
venv amlint amlint==0.8.5
