#!/usr/bin/env bash
# Installs Helm as a Python package (75 MB) and the schemas of Kubernetes, for the tests of the chart in
# deploy/helm, into target/tools/helm. Run by tests/run; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh
venv helm helm-python-sdk==0.2.2 kubernetes-validate==1.37.0
