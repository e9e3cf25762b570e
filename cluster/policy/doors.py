"""Decides which zones a fleet may ask for nodes now.

Inputs: launches that succeeded and that failed, and why.

The rule:
  - A zone that had no room is asked again after a wait that doubles with each refusal in a row.
  - A quota closes the market in the whole region, missing credentials close the cloud, for long.
  - A success opens the zone.

Invariants:
  1. waits_are_bounded: no door stays closed beyond the longest wait.
  2. refusals_close: right after a refusal the zone is not asked.
  3. quotas_close_regions: in that market, and no other region or market.
  4. credentials_close_clouds: and no other cloud.

Source: exponential back-off; what quotas and credentials cover is by the clouds' documents.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.policy.fleet import Market, Offer, Refused, ZoneId


@dataclass(frozen=True)
class DoorSettings:
    """How long a refusal is remembered, in seconds."""

    first_wait_s: float = 60.0
    longest_wait_s: float = 600.0
    quota_wait_s: float = 3600.0
    """A quota is raised by people, and missing credentials are mended by them."""


class Doors:
    """Zones and markets that may be asked."""

    def __init__(self, settings: DoorSettings, offers: Iterable[Offer]) -> None:
        self._settings = settings
        self._offers = {offer.zone: offer for offer in offers}
        self._refusals: dict[tuple[ZoneId, Market], int] = {}
        self._closed_until_s: dict[tuple[str, str], float] = {}

    def is_open(self, zone: ZoneId, market: Market, now_s: float) -> bool:
        """Say whether a node may be asked for."""
        offer = self._offers[zone]
        keys = ((zone, market), (offer.region, market), (offer.cloud, "any"))
        return all(self._closed_until_s.get(key, now_s) <= now_s for key in keys)

    def list_shut(self, now_s: float) -> list[tuple[str, float]]:
        """Return what is not asked now, and for how many seconds; the longest first."""
        left = [
            (name if market == "any" else f"{name} {market}", until_s - now_s)
            for (name, market), until_s in self._closed_until_s.items()
            if until_s > now_s
        ]
        return sorted(left, key=lambda one: (-one[1], one[0]))

    def admit(self, zone: ZoneId, market: Market) -> None:
        """Note a launch that succeeded."""
        self._refusals.pop((zone, market), None)
        self._closed_until_s.pop((zone, market), None)

    def refuse(self, refused: Refused, now_s: float) -> None:
        """Note a launch that failed."""
        offer, settings = self._offers[refused.zone], self._settings
        match refused.reason:
            case "quota":
                key, wait_s = (offer.region, str(refused.market)), settings.quota_wait_s
            case "credentials":
                key, wait_s = (offer.cloud, "any"), settings.quota_wait_s
            case "stock" | "other":
                key = (refused.zone, str(refused.market))
                wait_s = self._back_off_s(refused.zone, refused.market)
        self._closed_until_s[key] = now_s + wait_s

    def _back_off_s(self, zone: ZoneId, market: Market) -> float:
        refusals = self._refusals.get((zone, market), 0)
        self._refusals[(zone, market)] = refusals + 1
        wait_s: float = self._settings.first_wait_s * 2.0 ** min(refusals, 30)
        return min(self._settings.longest_wait_s, wait_s)
