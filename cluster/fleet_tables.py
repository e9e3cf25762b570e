"""What `arriero fleet` shows: plans, nodes, money; as tables and as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cluster.controller import Step
from cluster.fleet_book import Ended
from cluster.fleet_cost import stays_of
from cluster.policy.budget import price_of
from cluster.policy.fleet import Offer, ZoneId
from cluster.policy.reconcile import Entry
from cluster.policy.refusals import choose_line
from cluster.policy.spending import sum_spending
from cluster.provisioner import Provisioner
from serve_app.config_fleet import FleetSettings
from serve_app.config_summary import format_table

_DAY_S = 86_400.0


class FleetView:
    """One look at a fleet, for people and for scripts.

    Args:
        settings: What the fleet is kept at.
        step: What was seen, and what is planned.
        offers: Prices.
        ended: Nodes that are gone.
        now_s: Time.
    """

    def __init__(
        self,
        settings: FleetSettings,
        step: Step,
        offers: Sequence[Offer],
        ended: Sequence[Ended],
        now_s: float,
    ) -> None:
        self._settings = settings
        self._step = step
        self._offers = {offer.zone: offer for offer in offers}
        self._ended = ended
        self._now_s = now_s

    def plan_rows(self, provisioner: Provisioner) -> list[dict[str, Any]]:
        """Return what would be done, one row a node."""
        rows = []
        for launch in self._step.plan.launches:
            offer = self._offers[launch.zone]
            rows.append(
                {
                    "do": "launch",
                    "node": "",
                    "what": provisioner.describe_kind(launch.zone, launch.market),
                    "zone": launch.zone,
                    "market": launch.market,
                    "usd_per_h": price_of(offer, launch.market),
                    "why": launch.reason,
                }
            )
        leaving = {end.node: end.reason for end in self._step.plan.ends}
        for entry in self._step.entries:
            if entry.leaves_s is not None:
                leaving[entry.id] = entry.leaves_why
        for entry in self._step.entries:
            do = "end" if entry.id in leaving else "keep"
            why = leaving.get(entry.id, "serves" if entry.is_ready else "starts")
            what = provisioner.describe_kind(entry.zone, entry.market)
            rows.append({"do": do, "what": what, "why": why, **self._place(entry)})
        return rows

    def plan_json(self, provisioner: Provisioner) -> dict[str, Any]:
        """Return the plan for scripts."""
        rows = self.plan_rows(provisioner)
        usd_per_h = sum(row["usd_per_h"] for row in rows if row["do"] != "end")
        return {
            "object": "fleet.plan",
            "fleet": self._settings.name,
            "target": self._step.target,
            "nodes": rows,
            "usd_per_h": usd_per_h,
            "on_demand_usd_per_h": self._on_demand_usd_per_h(self._step.target),
            "shortage": self._step.plan.shortage,
            "why": self._step.plan.reason,
            "remarks": list(provisioner.remarks()),
        }

    def plan_text(self, provisioner: Provisioner) -> str:
        """Return the plan for people."""
        told = self.plan_json(provisioner)
        header = ("DO", "NODE", "WHAT", "ZONE", "MARKET", "$/H", "WHY")
        rows = [
            (
                row["do"],
                row["node"] or "(new)",
                row["what"],
                row["zone"],
                row["market"],
                f"{row['usd_per_h']:.2f}",
                choose_line(row["why"]),
            )
            for row in told["nodes"]
        ]
        lines = format_table([header, *rows]) if rows else ["Nothing to do, and no node is there."]
        return "\n".join(
            [
                *lines,
                "",
                self._price_line(told["usd_per_h"]),
                f"Because: {told['why']}.",
                *(f"Note: {remark}." for remark in told["remarks"]),
            ]
        )

    def status_json(self) -> dict[str, Any]:
        """Return the nodes and the money for scripts."""
        entries = self._step.entries
        serving = [entry for entry in entries if entry.is_ready]
        stays = stays_of(entries, self._ended, self._on_demand_prices())
        day = sum_spending(stays.values(), self._now_s - _DAY_S, self._now_s)
        return {
            "object": "fleet.status",
            "fleet": self._settings.name,
            "target": self._step.target,
            "serving": len(serving),
            "nodes": [self._row(entry) for entry in entries],
            "usd_per_h": sum(entry.usd_per_h for entry in entries),
            "on_demand_usd_per_h": self._on_demand_usd_per_h(self._step.target),
            "reclaims": self._count_reclaims(),
            "last_day": {
                **asdict(day),
                "usd": day.usd,
                "saved_usd": day.all_on_demand_usd - day.usd,
            },
        }

    def status_text(self) -> str:
        """Return the nodes and the money for people."""
        told = self.status_json()
        header = ("NODE", "ZONE", "MARKET", "STATE", "AGE", "$/H")
        rows = [
            (
                row["node"],
                row["zone"],
                row["market"],
                row["state"],
                show_age(row["age_s"]),
                f"{row['usd_per_h']:.2f}",
            )
            for row in told["nodes"]
        ]
        lines = format_table([header, *rows]) if rows else ["No node is there."]
        reclaims = told["reclaims"]
        by_zone = ", ".join(f"{zone} {n}" for zone, n in sorted(reclaims.items()))
        day = told["last_day"]
        saved = day["saved_usd"] / day["all_on_demand_usd"] if day["all_on_demand_usd"] else 0.0
        return "\n".join(
            [
                *lines,
                "",
                f"{told['serving']} of {told['target']} serve. "
                + self._price_line(told["usd_per_h"]),
                f"Last 24 hours: ${day['usd']:.2f}, {saved:.0%} less than on demand; "
                f"${day['wasted_usd']:.2f} of it before nodes served or after.",
                f"Reclaims: {sum(reclaims.values())}" + (f" ({by_zone})" if by_zone else ""),
            ]
        )

    def _row(self, entry: Entry) -> dict[str, Any]:
        place = self._place(entry)
        return {**place, "state": state_of(entry), "age_s": self._now_s - entry.asked_s}

    def _place(self, entry: Entry) -> dict[str, Any]:
        return {
            "node": entry.id,
            "zone": entry.zone,
            "market": entry.market,
            "usd_per_h": entry.usd_per_h,
        }

    def _on_demand_prices(self) -> Mapping[ZoneId, float]:
        return {
            zone: offer.on_demand_usd_per_h
            for zone, offer in self._offers.items()
            if offer.on_demand_usd_per_h is not None
        }

    def _on_demand_usd_per_h(self, n_nodes: int) -> float | None:
        prices = self._on_demand_prices().values()
        return min(prices) * n_nodes if prices else None

    def _price_line(self, usd_per_h: float) -> str:
        on_demand = self._on_demand_usd_per_h(self._step.target)
        line = f"${usd_per_h:.2f}/h"
        if not on_demand:
            return f"{line}; nothing is sold on demand."
        saved = 1 - usd_per_h / on_demand
        difference = f"{saved:.0%} less" if saved >= 0 else f"{-saved:.0%} more"
        compared = f" ({difference})" if usd_per_h else ""
        nodes = count_of(self._step.target)
        return f"{line}{compared}; {nodes} on demand would be ${on_demand:.2f}/h."

    def _count_reclaims(self) -> dict[str, int]:
        taken = [*self._step.entries, *(each.entry for each in self._ended)]
        counts: dict[str, int] = {}
        for entry in taken:
            if entry.is_taken:
                counts[entry.zone] = counts.get(entry.zone, 0) + 1
        return counts


def state_of(entry: Entry) -> str:
    """Return what a node does, in a word or two."""
    if entry.leaves_s is not None:
        return "is taken" if entry.is_taken else "leaves"
    if entry.is_ready:
        return "serves"
    if entry.ready_s is not None:
        return "is silent" if entry.heard_s is None else "is not ready"
    return "starts" if entry.up_s is None else "sets up"


def count_of(n_nodes: int) -> str:
    """Return a number of nodes for people."""
    return "1 node" if n_nodes == 1 else f"{n_nodes} nodes"


def show_age(seconds: float) -> str:
    """Return a span for people."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.0f} d"
    if hours >= 2:
        return f"{hours:.0f} h"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def list_ending(entries: Iterable[Entry]) -> str:
    """Return what `down` would stop."""
    rows = [(e.id, e.zone, e.market, state_of(e), f"{e.usd_per_h:.2f}") for e in entries]
    return "\n".join(format_table([("NODE", "ZONE", "MARKET", "STATE", "$/H"), *rows]))
