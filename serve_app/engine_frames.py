"""First frames of what a gateway sends to an engine (`deployments.engine_server`)."""

ADD = b"+"
ABORT = b"-"
ALIVE = b"."
