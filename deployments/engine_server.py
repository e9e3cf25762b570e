"""An engine's data plane: gateways' requests in, one message a step and gateway out.

One thread owns the socket. The core's thread hands it outputs; it encodes and sends them, so
that serialisation runs beside the model. Frames, after the sender's identity:

    gateway -> engine   BEGIN  |  ADD id handover request…  |  ABORT ids  |  ALIVE
    engine -> gateway   ACCEPTED id  |  times outputs…

`times` say how requests began here, each once; the frame is empty when none did. `request` and
`outputs` are vLLM's EngineCoreRequest and EngineCoreOutputs in vLLM's own msgpack form (tensors in
frames of their own). An `id` names one attempt at a ticket: what comes of an attempt that a gateway
has given up is told from what comes of the next by it. ACCEPTED leaves before the core sees the
request: should that end the process, its gateway knows who was there.
"""

import logging
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

import msgspec
import zmq
from vllm.tasks import SupportedTask
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.begin_times import BeginTimes
from serve_app.engine_frames import ABORT, ACCEPTED, ADD, ALIVE, BEGIN, write_times
from serve_app.messages import Endpoint, EngineLoad, Handover, Standing, TicketId
from serve_app.metrics import Counter
from serve_app.names import TenantId
from serve_app.wire import listen

logger = logging.getLogger(__name__)

_SILENT_GATEWAY_S = 10.0
"""A gateway that has said nothing for so long is dead; it says ALIVE every second or so."""
_POLL_MS = 1000
_RATE_WINDOW_S = 2.0


class Intake(Protocol):
    """What takes requests; from any thread."""

    def accept(
        self, request: EngineCoreRequest, standing: Standing, produced: Sequence[int] = ()
    ) -> None:
        """Takes a request. Its outputs go to the client of its `client_index`.

        Args:
            request: As it was when it began.
            standing: How its tenant stands.
            produced: Tokens that other engines have given it; it goes on after them.
        """

    def abort(self, request_ids: list[str]) -> None:
        """Ends requests without further outputs; unknown ids are ignored."""

    def counts(self) -> tuple[int, int, float]:
        """Requests running, requests waiting, share of KV-cache blocks in use."""


class Core(Intake, Protocol):
    """What steps a model; `run` on a thread of its own, the rest from any thread."""

    @property
    def prefix_tokens(self) -> int:
        """Tokens that its prefix cache holds; 0 is none."""

    @property
    def max_running(self) -> int:
        """Sequences that one batch can hold."""

    @property
    def tasks(self) -> tuple[SupportedTask, ...]:
        """What the model can do."""

    @property
    def adapter_slots(self) -> int:
        """Different adapters that a batch may have; 0 where there are none."""

    @property
    def adapter_capacity(self) -> int:
        """Adapters that host memory holds."""

    def active_adapters(self) -> set[int]:
        """Adapters of the requests that run."""

    def hold_adapter(self, adapter_id: int, path: str) -> Future[float]:
        """Loads an adapter into host memory between two steps, without taking a slot.

        A request with an adapter may be accepted from then on, until it is dropped. As of the
        other two, the result is for how many seconds steps waited.
        """

    def activate_adapter(self, adapter_id: int) -> Future[float]:
        """Copies a held adapter to a slot between steps, if one is free.

        Not needed: else the step does it that runs the adapter's first request. But others would
        feel both at once.
        """

    def drop_adapter(self, adapter_id: int) -> Future[float]:
        """Forgets an adapter that no request uses."""

    @property
    def last_step_s(self) -> float:
        """When the last step ended, by the monotonic clock."""

    def synchronise(self, counters: Mapping[TenantId, int]) -> None:
        """Takes the router's counters of the tenants that have something here."""

    def run(self) -> None:
        """Steps until `stop`. Raises what a step raises; the core is then unusable."""

    def stop(self) -> None:
        """Makes `run` return."""


class OutputsWatch(Protocol):
    """Sees what the core says before gateways do; called on the server's thread."""

    def begin(self, request: EngineCoreRequest) -> None:
        """A request has come."""

    def forget(self, request_id: str) -> None:
        """A request was aborted."""

    def take(self, outputs: EngineCoreOutputs) -> None:
        """Takes a message of the core; may keep what gateways have no use for."""


class _Client:
    """A gateway as this engine knows it."""

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.requests: dict[str, TicketId] = {}
        self.heard_s = time.monotonic()


class EngineServer:
    """Moves messages between gateways and a core.

    `core` is set once the model is loaded; nobody knows the endpoint before that.

    Args:
        host: Address that gateways can reach this process at.
        tokens: Counts those that were generated.
    """

    def __init__(self, host: str, tokens: Counter) -> None:
        self.core: Intake | None = None
        self.watch: OutputsWatch | None = None
        self._tokens = tokens
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._router = context.socket(zmq.ROUTER)
        self.endpoint: Endpoint = listen(self._router, host)
        # Wakes the thread when there are outputs to send.
        wake_address = f"inproc://outputs-{id(self)}"
        self._wake_receiver = context.socket(zmq.PULL)
        self._wake_receiver.bind(wake_address)
        self._wake_sender = context.socket(zmq.PUSH)
        self._wake_sender.connect(wake_address)
        self._wake_lock = threading.Lock()
        self._outputs: queue.SimpleQueue[tuple[int, EngineCoreOutputs]] = queue.SimpleQueue()
        self._clients: list[_Client] = []
        self._index_of: dict[bytes, int] = {}
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreRequest)
        self._handover_decoder = msgspec.msgpack.Decoder(Handover)
        self._progress: defaultdict[TicketId, int] = defaultdict(int)
        self._progress_lock = threading.Lock()
        self._recent: deque[tuple[float, int]] = deque()
        self._begin_times = BeginTimes()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-io", daemon=True)

    def start(self) -> None:
        """Begins to serve gateways."""
        self._thread.start()

    def emit(self, client_index: int, outputs: EngineCoreOutputs) -> None:
        """Takes one step's outputs for one gateway from the core, on whatever thread it runs."""
        self._outputs.put((client_index, outputs))
        # Nearly always the core's thread; a request that fails to preprocess is answered from
        # this server's own, and a socket is for one thread at a time.
        with self._wake_lock:
            self._wake_sender.send(b"")

    def load(self) -> EngineLoad:
        """What the engine is doing now."""
        if self.core is None:
            return EngineLoad()
        running, waiting, kv_usage = self.core.counts()
        horizon_s = time.monotonic() - _RATE_WINDOW_S
        recent = sum(n for at_s, n in list(self._recent) if at_s >= horizon_s)
        return EngineLoad(running, waiting, round(kv_usage, 4), round(recent / _RATE_WINDOW_S, 1))

    def count_requests(self) -> int:
        """Requests that it has taken and not ended, wherever in the core they are."""
        return sum(len(client.requests) for client in self._clients)

    def take_progress(self) -> dict[TicketId, int]:
        """Tokens produced by ticket since the last call."""
        with self._progress_lock:
            progress, self._progress = self._progress, defaultdict(int)
        return progress

    def stop(self) -> None:
        """Stops the thread and closes the sockets."""
        self._stopping.set()
        self._thread.join(timeout=2 * _POLL_MS / 1000)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_receiver, zmq.POLLIN)
        while not self._stopping.is_set():
            ready = dict(poller.poll(_POLL_MS))
            if self._wake_receiver in ready:
                self._send_outputs()
            if self._router in ready:
                self._receive()
            self._abort_for_silent()
        self._router.close(linger=500)
        self._wake_receiver.close(linger=0)
        self._wake_sender.close(linger=0)

    def _send_outputs(self) -> None:
        self._wake_receiver.recv()
        client_index, outputs = self._outputs.get_nowait()
        if self.watch is not None:
            self.watch.take(outputs)
        if not outputs.outputs:
            return  # It told of the core only.
        client = self._clients[client_index]
        self._count_tokens(sum(len(output.new_token_ids) for output in outputs.outputs))
        self._note_progress(client, outputs.outputs)
        times = write_times(self._begin_times.read(outputs))
        for output in outputs.outputs:
            output.trace_headers = None  # The gateway, whose it is, knows it.
            if output.finished:
                client.requests.pop(output.request_id, None)
        frames = self._encoder.encode(outputs)
        self._router.send_multipart([client.identity, times, *frames], copy=False)

    def _note_progress(self, client: _Client, outputs: Iterable[EngineCoreOutput]) -> None:
        with self._progress_lock:
            for output in outputs:
                ticket = client.requests.get(output.request_id)
                if output.new_token_ids and ticket is not None:
                    self._progress[ticket] += len(output.new_token_ids)

    def _count_tokens(self, n_tokens: int) -> None:
        now_s = time.monotonic()
        self._tokens.add(n_tokens)
        self._recent.append((now_s, n_tokens))
        while self._recent[0][0] < now_s - _RATE_WINDOW_S:
            self._recent.popleft()

    def _receive(self) -> None:
        identity, kind, *data = self._router.recv_multipart(copy=False)
        index = self._client_index(bytes(identity.buffer))
        client = self._clients[index]
        client.heard_s = time.monotonic()
        try:
            self._handle(client, index, bytes(kind.buffer), data)
        except Exception:
            # One gateway's bad message must not end the others' service.
            logger.exception("A gateway's message could not be handled; it is dropped.")

    def _handle(self, client: _Client, index: int, kind: bytes, data: list[zmq.Frame]) -> None:
        if kind == ADD:
            self._add(client, index, data)
        elif kind == ABORT:
            self._abort(client, msgspec.msgpack.decode(data[0].buffer, type=list[str]))
        elif kind == BEGIN:
            # Its last connection broke, and it has taken elsewhere what it had here.
            self._abort(client, list(client.requests))
        elif kind != ALIVE:
            logger.error("A gateway sent a message of unknown kind %r.", kind)

    def _client_index(self, identity: bytes) -> int:
        index = self._index_of.get(identity)
        if index is None:
            index = self._index_of[identity] = len(self._clients)
            self._clients.append(_Client(identity))
        return index

    def _add(self, client: _Client, index: int, data: list[zmq.Frame]) -> None:
        assert self.core is not None
        request_id = bytes(data[0].buffer).decode()
        try:
            handover = self._handover_decoder.decode(data[1].buffer)
            request: EngineCoreRequest = self._decoder.decode(data[2:])
            request.request_id = request_id
            request.client_index = index
            client.requests[request_id] = handover.ticket
            self._router.send_multipart([client.identity, ACCEPTED, request_id.encode()])
            self._begin_times.take(request_id, has_adapter=request.lora_request is not None)
            if self.watch is not None:
                self.watch.begin(request)
            self.core.accept(request, handover.standing, handover.produced)
        except Exception:
            # Whatever is wrong with it, its client must not wait for ever.
            logger.exception("Request %s could not be taken.", request_id)
            failed = EngineCoreOutput(request_id, [], finish_reason=FinishReason.ERROR)
            self.emit(index, EngineCoreOutputs(outputs=[failed]))

    def _abort(self, client: _Client, request_ids: list[str]) -> None:
        assert self.core is not None
        known = [r for r in request_ids if r in client.requests]
        for request_id in known:
            del client.requests[request_id]
            self._begin_times.forget(request_id)
            if self.watch is not None:
                self.watch.forget(request_id)
        if known:
            self.core.abort(known)

    def _abort_for_silent(self) -> None:
        horizon_s = time.monotonic() - _SILENT_GATEWAY_S
        for client in self._clients:
            if client.requests and client.heard_s < horizon_s:
                logger.warning(
                    "A gateway has been silent for %.0f s; its %d requests are aborted.",
                    _SILENT_GATEWAY_S,
                    len(client.requests),
                )
                self._fail_all(client)

    def _fail_all(self, client: _Client) -> None:
        """Ends a gateway's requests and says so: it may have been slow only, and has them go on."""
        request_ids = list(client.requests)
        self._abort(client, request_ids)
        ended = [EngineCoreOutput(r, [], finish_reason=FinishReason.ABORT) for r in request_ids]
        self.emit(self._index_of[client.identity], EngineCoreOutputs(outputs=ended))
