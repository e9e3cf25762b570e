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
# Where no gateway answers, it would say 500 without a word of why. OpenAI's clients try again after
# 503 with `Retry-After`, and people read the body.
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
  answer="$(dirname "$config")/no_gateway.http"
  body='{"error": {"message": "No gateway answered: it is starting, or it has just stopped. Try again in some seconds; serve status says more.", "type": "overloaded_error", "param": null, "code": "gateway_unavailable"}}'
  printf 'HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 2\r\nCache-Control: no-store\r\nContent-Length: %s\r\n\r\n%s' \
    "${#body}" "$body" > "$answer"
  sed -i -E \
    -e 's/^([[:space:]]*bind )\*?:([0-9]+)/\1127.0.0.1:\2/' \
    -e "s|^([[:space:]]*errorfile 50[234]) .*|\\1 $answer|" \
    -e '/^[[:space:]]*option splice-request[[:space:]]*$/d' \
    "$config"
fi
exec "$ARRIERO_HAPROXY" "$@"
