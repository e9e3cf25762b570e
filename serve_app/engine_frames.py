"""What goes between gateways and engines (`deployments.engine_server`) beside vLLM's structs."""

from collections.abc import Mapping
from typing import Any

import msgspec

from serve_app.messages import EngineTimes

BEGIN = b"^"
ADD = b"+"
ABORT = b"-"
ALIVE = b"."

ACCEPTED = b"!"
"""From an engine. Times, which come first otherwise, are nothing or a map."""

_NONE: Mapping[str, EngineTimes] = {}
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[str, EngineTimes])


def write_times(times: Mapping[str, EngineTimes]) -> bytes:
    """Returns the frame before a step's outputs; empty in nearly all steps, as it says nothing."""
    return _encoder.encode(times) if times else b""


def read_times(frame: Any) -> Mapping[str, EngineTimes]:
    """Returns what `write_times` wrote, by what the engine calls the requests."""
    data = memoryview(frame)
    return _decoder.decode(data) if data else _NONE
