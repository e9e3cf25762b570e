"""A gateway's dealings with the ledger.

    reserve --Reserve--> ledger --Granted | Refused--> settle --Settle, until Settled--> done

All that a turn of the event loop has to say goes in one message. Nothing said is lost while this
gateway lives: what the ledger has not confirmed is said again to its successor.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

import msgspec
import zmq

from serve_app.errors import OverloadedError
from serve_app.ledger_messages import (
    Forget,
    Granted,
    LeaseId,
    LeaseMail,
    LedgerMail,
    Look,
    Looked,
    Progress,
    Refused,
    Renew,
    Reserve,
    Resume,
    SetLogLevel,
    Settle,
    Settled,
    Standing,
    Usage,
)
from serve_app.names import KeyId, ModelName, TenantId
from serve_app.standing_link import FindEndpoint, StandingLink

logger = logging.getLogger(__name__)

_RENEWALS_A_LEASE = 6
_RETRY_AFTER_S = 5.0
_LOOK_S = 0.5
"""How long an answer without a reservation waits for its headers."""

ReadUsage = Callable[[], Usage]
"""Says what a lease has used so far."""


class LedgerClient:
    """Reserves and settles.

    Args:
        find: How to find the ledger.
        identity: This gateway's name, unique in the cluster.
        wait_s: Seconds that a request waits for a ledger that is away.
        lease_s: Length of a lease.
    """

    def __init__(self, find: FindEndpoint, identity: bytes, wait_s: float, lease_s: float) -> None:
        self.wait_s = wait_s
        self.lease_s = lease_s
        self._asked: dict[LeaseId, tuple[Reserve, asyncio.Future[Granted | Refused]]] = {}
        self._running: dict[LeaseId, tuple[Reserve, ReadUsage]] = {}
        self._ended: dict[LeaseId, Settle] = {}
        """Not confirmed yet."""
        self._looks: dict[int, asyncio.Future[Standing]] = {}
        self._n_looks = 0
        self._outbox: list[LedgerMail] = []
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[LeaseMail])
        self._link = StandingLink("ledger", find, identity, self._receive, self._resume)
        self._renewing: asyncio.Task[None] | None = None

    @property
    def n_open(self) -> int:
        """Leases that the ledger has not confirmed the end of."""
        return len(self._running) + len(self._ended)

    def start(self) -> None:
        """Begins to connect, in the background."""
        self._link.start()
        self._renewing = asyncio.create_task(self._renew(), name="renew leases")

    def close(self) -> None:
        """Disconnects. Leases that still run lapse."""
        self._flush()
        if self._renewing is not None:
            self._renewing.cancel()
        self._link.close()

    async def reserve(self, ask: Reserve, read_usage: ReadUsage) -> Granted | Refused:
        """Asks whether a request may begin. If granted, `settle` must follow.

        Args:
            ask: The request; its lease must be new.
            read_usage: Says what it has used so far, as long as it runs.

        Raises:
            OverloadedError: The ledger is away. Nothing begins without its consent.
        """
        answered: asyncio.Future[Granted | Refused] = asyncio.get_running_loop().create_future()
        self._asked[ask.lease] = (ask, answered)
        self._post(ask)
        try:
            async with asyncio.timeout(self.wait_s):
                answer = await answered
        except TimeoutError:
            self._give_up(ask.lease)
        except asyncio.CancelledError:
            self._end(ask.lease, None)
            raise
        finally:
            self._asked.pop(ask.lease, None)
        if isinstance(answer, Granted):
            self._running[ask.lease] = (ask, read_usage)
        return answer

    def _give_up(self, lease: LeaseId) -> NoReturn:
        self._end(lease, None)
        raise OverloadedError(
            f"The ledger, which keeps count of limits, has not answered for {self.wait_s:g} s, "
            f"the limit of ledger.wait_s. Try again in {_RETRY_AFTER_S:g} s.",
            _RETRY_AFTER_S,
        )

    def settle(self, lease: LeaseId, usage: Usage | None) -> None:
        """Says what a lease used in the end. Does not wait; will not be lost.

        Args:
            lease: A granted one. Settled once; again changes nothing.
            usage: None gives everything back.
        """
        if self._running.pop(lease, None) is not None:
            self._end(lease, usage)

    def _end(self, lease: LeaseId, usage: Usage | None) -> None:
        self._ended[lease] = Settle(lease, usage)
        self._post(self._ended[lease])

    def set_log_level(self, level: str) -> None:
        """Changes how much the ledger logs, if it is there; empty is what its settings say."""
        self._post(SetLogLevel(level))

    async def look(self, tenant: TenantId, key: KeyId, model: ModelName) -> Standing | None:
        """Returns how things stand, or None when the ledger is away."""
        if not self._link.is_connected:
            return None
        self._n_looks += 1
        number = self._n_looks
        answered: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
        self._looks[number] = answered
        self._post(Look(number, tenant, key, model))
        try:
            async with asyncio.timeout(_LOOK_S):
                return await answered
        except TimeoutError:
            return None
        finally:
            del self._looks[number]

    # --- to the ledger ----------------------------------------------------------------------

    def _post(self, mail: LedgerMail) -> None:
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(mail)

    def _flush(self) -> None:
        if self._outbox:
            batch, self._outbox = self._outbox, []
            self._link.send([self._encoder.encode(batch)])

    def _resume(self) -> None:
        """What was in the outbox is said here, as everything is that was not confirmed."""
        self._outbox = []
        running = [Progress(ask, read_usage()) for ask, read_usage in self._running.values()]
        batch: list[LedgerMail] = [Resume(running), *self._ended.values()]
        batch += [ask for ask, _ in self._asked.values()]
        self._link.send([self._encoder.encode(batch)])

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.lease_s / _RENEWALS_A_LEASE)
            usages = {lease: read_usage() for lease, (_, read_usage) in self._running.items()}
            if usages:
                self._post(Renew(usages))

    # --- from the ledger --------------------------------------------------------------------

    def _receive(self, frames: list[zmq.Frame]) -> None:
        for mail in self._decoder.decode(frames[0].buffer):
            match mail:
                case Granted() | Refused():
                    self._take_answer(mail)
                case Settled():
                    for lease in mail.leases:
                        self._ended.pop(lease, None)
                    self._post(Forget(mail.leases))
                case Looked():
                    looking = self._looks.get(mail.number)
                    if looking is not None and not looking.done():
                        looking.set_result(mail.standing)

    def _take_answer(self, answer: Granted | Refused) -> None:
        """One for a request that has given up is dropped: its lease is being given back."""
        asked = self._asked.get(answer.lease)
        if asked is not None and not asked[1].done():
            asked[1].set_result(answer)
