"""First frames of what a gateway sends to an engine (`deployments.engine_server`)."""

BEGIN = b"^"
ADD = b"+"
ABORT = b"-"
ALIVE = b"."
