#!/usr/bin/env bash
# Installs a RabbitMQ server for the tests that start their own, and what they need beside it: epmd (comes with Erlang),
# flock, openssl (certificates). No daemon is started. Run by tests/run; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh

missing=()
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null || missing+=(rabbitmq-server)
command -v flock >/dev/null || missing+=(util-linux)
command -v openssl >/dev/null || missing+=(openssl)
[ "${#missing[@]}" = 0 ] || apt_packages "${missing[@]}"

# From the package where there is one: asking the program itself takes seconds and, on Debian, another user.
version=$(dpkg-query -W -f '${Version}' rabbitmq-server 2>/dev/null || rabbitmqctl version 2>/dev/null || true)
version=$(printf '%s' "$version" | sed -n 's/^\([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p')
case $version in
  3.[1-9][0-9] | [4-9].* | [1-9][0-9]*.*) ;;
  *) fail "rabbitmq-server here is version ${version:-unknown}, promptq needs 3.10 or later" \
    "use Debian 12, Ubuntu 24.04 or later, or install a newer rabbitmq-server, then run tests/run again" ;;
esac
