#!/usr/bin/env bash
# Installs Grafana's own model of a dashboard, for the tests of deploy/grafana, into target/tools/grafana. Run by tests/run;
# safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh
venv grafana 'grafana-foundation-sdk==1769699998!10.1.0'
