"""First frames of what gateways and engines say to one another (`deployments.engine_server`)."""

BEGIN = b"^"
ADD = b"+"
ABORT = b"-"
ALIVE = b"."

ACCEPTED = b"!"
"""From an engine; outputs are never so short."""
