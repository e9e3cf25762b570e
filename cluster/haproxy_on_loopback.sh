#!/bin/sh
# Stands in for HAProxy on a machine that must not be reachable from outside.
#
# Ray Serve's configuration of HAProxy binds its metrics and statistics to every address of the
# machine, and has no setting for that. This moves those two to the loopback address.
#
# It also has HAProxy splice request bodies. After a spliced body HAProxy 2.8 does not read the
# client's connection any more, so that a client who hangs up while it waits for an answer is not
# noticed, in spite of `option abortonclose`: its request would run to the end. That option goes.
#
# Then this becomes HAProxy. Serve calls it as: haproxy -db -f FILE [more options].
set -eu
config=""
previous=""
for argument in "$@"; do
  if [ "$previous" = "-f" ]; then config="$argument"; fi
  previous="$argument"
done
if [ -n "$config" ]; then
  sed -i -E \
    -e 's/^([[:space:]]*bind )\*?:([0-9]+)/\1127.0.0.1:\2/' \
    -e '/^[[:space:]]*option splice-request[[:space:]]*$/d' \
    "$config"
fi
exec "$ARRIERO_HAPROXY" "$@"
