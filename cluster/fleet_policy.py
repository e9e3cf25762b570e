"""The placement policy as the settings, the prices and the past make it."""

import statistics
from collections.abc import Callable, Iterable, Sequence

from cluster.fleet_book import Ended, FleetBook, Seen, zones_of
from cluster.policy.budget import Budget
from cluster.policy.demand import DemandTarget
from cluster.policy.fleet import Happening, Offer, Refused, ZoneId
from cluster.policy.placement import PlacementSettings, SpotPlacement
from cluster.policy.probes import ProbeSettings
from cluster.policy.reconcile import Entry, Patience
from cluster.provisioner import FleetError, Provisioner
from serve_app.config_fleet import FleetSettings

_MEASURED = 3
_LAST = 20
_PRICES_S = 3600.0
_AGAIN_S = 300.0


class PolicyKeeper:
    """Keeps a fleet's policy at prices, zones and target as they are now.

    Args:
        settings: Of the fleet.
        provisioner: Who knows prices.
        book: Has the past.
        tell: Gets lines for people.
    """

    def __init__(
        self,
        settings: FleetSettings,
        provisioner: Provisioner,
        book: FleetBook,
        tell: Callable[[str], None],
    ) -> None:
        self.offers: dict[ZoneId, Offer] = {}
        self._settings = settings
        self._provisioner = provisioner
        self._book = book
        self._tell = tell
        self._policy: SpotPlacement | None = None
        self._made_for: tuple[int, frozenset[ZoneId]] = (0, frozenset())
        self._prices_until_s = 0.0
        self._since_s: float | None = None

    def refresh(self, entries: Sequence[Entry], target: int, now_s: float) -> SpotPlacement:
        """Return the policy, made anew where prices or target are, or a zone is that it lacks.

        Raises:
            FleetError: Prices have never been known.
        """
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s >= self._prices_until_s:
            self._read_prices(now_s)
        made_for, zones = self._made_for
        if self._policy is None or target != made_for or not {e.zone for e in entries} <= zones:
            ended, past = self._book.read_ended(), self._book.read_seen()
            offers = add_unpriced(list(self.offers.values()), entries, past)
            start_up_s = measure_start_up_s(entries, ended, self._settings.start_up_s)
            self._policy = make_policy(
                self._settings, target, offers, start_up_s, past, self._since_s
            )
            self._made_for = target, frozenset(offer.zone for offer in offers)
        return self._policy

    def doubt_prices(self) -> None:
        """Have them read anew: something was not to be had that they speak of."""
        self._prices_until_s = 0.0

    def _read_prices(self, now_s: float) -> None:
        """Read prices. Those of an hour ago do where there are none now, and an end needs none."""
        try:
            offers = {offer.zone: offer for offer in self._provisioner.list_offers()}
        except FleetError as error:
            if not self.offers and not self._book.orders():
                raise
            self._tell(f"prices are not known now: {error}")
            self._prices_until_s = now_s + _AGAIN_S
            return
        self._prices_until_s = now_s + _PRICES_S
        if offers != self.offers:
            self.offers, self._policy = offers, None
        for remark in self._provisioner.remarks():
            self._tell(remark)


def make_policy(
    settings: FleetSettings,
    target: int,
    offers: Sequence[Offer],
    start_up_s: float,
    past: Sequence[Seen],
    since_s: float,
) -> SpotPlacement:
    """Return a policy for a target that knows what its predecessors have seen.

    Refusals that people mend, quotas and credentials, are forgotten from before `since_s`: who
    starts a controller may have mended them.
    """
    placement = PlacementSettings(
        target=target,
        start_up_s=start_up_s,
        goal=settings.goal,
        floor=settings.floor,
        most_spare=settings.most_spare,
        reaction_s=max(1.0, settings.period_s),
        notice_s=settings.notice_s,
        paid_s=settings.paid_s,
        probes=ProbeSettings(settings.probe_every_s, settings.paid_s),
        budget=Budget(settings.budget.usd_per_h, settings.budget.shed_first),
    )
    policy = SpotPlacement(placement, offers)
    for seen in past:
        is_fresh = seen.at_s >= since_s
        policy.observe([h for h in seen.happenings if is_fresh or not _is_mended(h)], seen.at_s)
        policy.recall(seen.nodes, seen.at_s)
    return policy


def _is_mended(happening: Happening) -> bool:
    return isinstance(happening, Refused) and happening.reason in ("quota", "credentials")


def make_aim(settings: FleetSettings, last: int) -> DemandTarget | None:
    """Return what moves the target, which was `last` before; None where it stays."""
    if settings.most_target is None:
        return None
    return DemandTarget(settings.target, settings.most_target, settings.idle_s, last)


def measure_start_up_s(
    entries: Iterable[Entry], ended: Iterable[Ended], otherwise_s: float
) -> float:
    """Return how long nodes took to serve, by the middle one of the last."""
    known = [*(each.entry for each in ended), *entries]
    served = sorted((e for e in known if e.ready_s is not None), key=lambda e: e.asked_s)[-_LAST:]
    took_s = [e.ready_s - e.asked_s for e in served if e.ready_s is not None and e.up_s is not None]
    return max(1.0, statistics.median(took_s)) if len(took_s) >= _MEASURED else otherwise_s


def add_unpriced(
    offers: Sequence[Offer], entries: Iterable[Entry], past: Sequence[Seen]
) -> list[Offer]:
    """Return the offers, and for zones that are known and have none one without prices."""
    known = {offer.zone for offer in offers}
    named = {str(entry.zone) for entry in entries} | zones_of(past)
    more = [Offer(ZoneId(z), z.split("/")[0], _region_of(z), None, None) for z in sorted(named)]
    return [*offers, *(offer for offer in more if offer.zone not in known)]


def patience_of(settings: FleetSettings) -> Patience:
    """Return how long the controller waits for things."""
    silence_s = max(30.0, 3 * settings.period_s)
    return Patience(
        grace_s=silence_s,
        start_s=settings.give_up_s,
        silence_s=silence_s,
        # Another one would not serve sooner.
        unready_s=max(silence_s, settings.start_up_s),
    )


def _region_of(zone: str) -> str:
    return "/".join(zone.split("/")[:2])
