#!/bin/sh
# keeper.sh FOLDER [HOME]: runs one RabbitMQ and the epmd it needs, and ends both when nobody needs them any more: when
# standard input ends, or, for the server that tests share, once no test has held HOME/users for a while. The tests
# wait for it and talk to it; this only starts and ends it.
set -u
folder=$1 home=${2-}
# Held as long as the shared server has a keeper; not handed on to the server, which may outlive a keeper that is killed.
[ -z "$home" ] || { exec 7>"$home/kept" && flock -n 7 || exit 1; }

# An epmd of its own: one that the system has, or that another server started, would outlive the tests or end too soon.
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 </dev/null >/dev/null 2>&1 7>&- &
epmd=$!
# Not the command in the search path of Debian: that changes the user.
program=/usr/lib/rabbitmq/bin/rabbitmq-server
[ -x "$program" ] || program=rabbitmq-server
"$program" -noinput +S 2:2 -kernel inet_dist_use_interface '{127,0,0,1}' -eval "file:eval(\"$folder/control.erl\")" \
  </dev/null >"$folder/out" 2>&1 7>&- &
server=$!
echo "$server $epmd" >"$folder/pids.new" && mv "$folder/pids.new" "$folder/pids"

if [ -z "$home" ]; then
  read -r _
else
  idle=0
  while kill -0 "$server" 2>/dev/null; do
    sleep 1
    exec 8>>"$home/users"
    if flock -n -x 8; then idle=$((idle + 1)); else idle=0; fi
    exec 8>&-
    [ "$idle" -ge 20 ] || continue
    # Whoever needs it next waits at this lock, and then starts another.
    exec 9>>"$home/start" && flock 9
    exec 8>>"$home/users"
    flock -n -x 8 && break
    exec 8>&- 9>&-
  done
fi
kill -9 "$server" "$epmd" 2>/dev/null
wait
[ -z "$home" ] || rm -rf "$folder"
