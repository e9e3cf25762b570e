"""A router's post office and clock, without sockets and without waiting."""

from collections import defaultdict

import msgspec

from serve_app.messages import (
    AdapterRef,
    AdapterReport,
    Endpoint,
    EngineId,
    EngineMail,
    EngineReport,
    EngineState,
    Enqueue,
    GatewayMail,
    TicketId,
)
from serve_app.names import ModelName, TenantId
from serve_app.wire import Frames


class FakeClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


class FakeMailbox:
    """Keeps what a router sends, by receiver."""

    def __init__(self) -> None:
        self.endpoint = Endpoint("tcp://router", b"k")
        self._sent: dict[bytes, list[GatewayMail | EngineMail]] = defaultdict(list)
        self._decoder = msgspec.msgpack.Decoder(GatewayMail | EngineMail)

    async def receive(self) -> tuple[bytes, list[bytes]]:
        raise NotImplementedError("tests hand messages to the router themselves")

    def send(self, identity: bytes, frames: Frames) -> None:
        (frame,) = frames
        assert isinstance(frame, bytes)
        self._sent[identity].append(self._decoder.decode(frame))

    def close(self) -> None:
        self._sent.clear()

    def take(self, identity: bytes) -> list[GatewayMail | EngineMail]:
        """What was sent to one receiver since the last call."""
        return self._sent.pop(identity, [])


class FakeKeeper:
    """Keeps a router's state in memory."""

    def __init__(self) -> None:
        self.state: bytes | None = None

    def load(self) -> bytes | None:
        return self.state

    def save(self, state: bytes) -> None:
        self.state = state


def enqueue(
    ticket: str,
    tenant: str = "team-a",
    max_tokens: int = 10,
    prompt_tokens: int = 5,
    adapter: AdapterRef | None = None,
    marks: bytes = b"",
) -> Enqueue:
    """A request that wants an engine."""
    return Enqueue(
        TicketId(ticket),
        TenantId(tenant),
        weight=1.0,
        tier=0,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        adapter=adapter,
        marks=marks,
    )


def report(
    engine: str,
    state: EngineState = "ready",
    max_running: int = 2,
    model: str = "",
    adapters: AdapterReport = AdapterReport(),  # noqa: B008 - frozen
    prefix_tokens: int = 0,
) -> EngineReport:
    """An engine that says how it is."""
    endpoint = Endpoint(f"tcp://{engine}", b"k") if state in ("ready", "draining") else None
    return EngineReport(
        EngineId(engine),
        state,
        endpoint=endpoint,
        config_id=f"c{model}",
        max_running=max_running,
        model=ModelName(model),
        adapters=adapters,
        prefix_tokens=prefix_tokens,
    )
