"""Tells a router's gateways how things stand: engines, queues, how fair it is."""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping

from deployments.autoscaler import Autoscaler
from deployments.fleet import Fleet
from deployments.router_metrics import RouterMetrics
from deployments.ticket_book import TicketBook
from serve_app.adapter_counts import AdapterArrivals
from serve_app.messages import FairnessStatus, ModelStatus, TenantStatus
from serve_app.names import ModelName, TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_figures import measure_fairness
from serve_app.policy.fairness_options import Cost

_TENANTS_SHOWN = 50


class Announcer:
    """Keeps a router's gateways informed.

    Args:
        queue: Whose fairness is measured.
        cost: What it charges.
        fleet: The engines.
        tickets: The requests, and the gateways that are told.
        autoscaler: Says how many engines there are to be.
        send: Sends a gateway a status.
        arrivals: Returns how near adapters were when requests for a model came.
        notes: What was done about deployments that failed.
        slack: Service that locality and other cells let counters differ by.
        preempts: Whether engines take requests beyond their room.
        metrics: Shows the same to operators.
    """

    def __init__(
        self,
        queue: Vtc,
        cost: Cost,
        fleet: Fleet,
        tickets: TicketBook,
        autoscaler: Autoscaler,
        send: Callable[[bytes, ModelStatus], None],
        arrivals: Callable[[ModelName], AdapterArrivals],
        notes: Mapping[ModelName, str],
        *,
        slack: float,
        preempts: bool,
        metrics: RouterMetrics,
    ) -> None:
        self._queue = queue
        self._cost = cost
        self._fleet = fleet
        self._tickets = tickets
        self._autoscaler = autoscaler
        self._send = send
        self._arrivals = arrivals
        self._notes = notes
        self._slack = slack
        self._preempts = preempts
        self._metrics = metrics
        self._fairness = FairnessStatus()
        self.log_level = ""
        """What an operator has set; empty where nobody has."""
        self.is_settling = True
        """Whether engines may be there that the router, being new, has not heard yet."""

    def measure_fairness(self) -> None:
        """Takes the figures of this moment. Linear in the tenants that wait."""
        views = list(self._fleet.views())
        window = sum(e.room_beyond if self._preempts else e.room for e in views)
        weights = {tenant: share.weight for tenant, share in self._tickets.shares.items()}
        longest = self._tickets.longest
        figures = measure_fairness(self._queue, self._cost, longest, window, weights, self._slack)
        self._fairness = FairnessStatus(
            figures.gap, figures.bound, len(figures.lags), self._view_tenants(figures.lags)
        )
        self._metrics.show_fairness(figures)

    def show(self, max_waiting: int) -> None:
        """Shows operators who waits and runs, and which engines there are."""
        running = (engine.by_tenant for engine in self._fleet)
        self._metrics.show_crowd(self._tickets.waiting_by_tenant, running, max_waiting)
        reports = (engine.report for engine in self._fleet)
        self._metrics.show_engines((report.model, report.state) for report in reports)
        self._metrics.show_wanted(self._autoscaler.wanted())

    def _view_tenants(self, lags: Mapping[TenantId, float]) -> list[TenantStatus]:
        running: Counter[TenantId] = Counter()
        for engine in self._fleet:
            running.update(engine.by_tenant)
        waiting = {tenant: self._tickets.n_waiting(tenant) for tenant in {*running, *lags}}
        shown = heapq.nsmallest(
            _TENANTS_SHOWN, waiting, key=lambda t: (-waiting[t], -running[t], t)
        )
        return [
            TenantStatus(
                tenant,
                self._tickets.share_of(tenant).weight,
                waiting[tenant],
                running[tenant],
                lags.get(tenant, 0.0),
            )
            for tenant in shown
        ]

    def publish(self) -> None:
        """Tells all gateways."""
        gateways = self._tickets.gateways
        statuses = {model: self._status(model) for model in {g.model for g in gateways.values()}}
        for identity, gateway in gateways.items():
            self._send(identity, statuses[gateway.model])

    def tell(self, gateway: bytes) -> None:
        """Tells one gateway."""
        self._send(gateway, self._status(self._tickets.gateways[gateway].model))

    def _status(self, model: ModelName) -> ModelStatus:
        return ModelStatus(
            self._fleet.config_id(model),
            self._fleet.statuses(model),
            self._tickets.n_waiting_of(model),
            self._fairness,
            adapters=self._arrivals(model),
            log_level=self.log_level,
            scaling=self._autoscaler.status(model),
            note=self._notes.get(model, ""),
            is_settling=self.is_settling,
        )
