"""Who brings nodes up and ends them: what the controller asks of SkyPilot, or of this machine.

A launch goes on by itself: whoever asked may die. So what there is is always asked of the
provisioner and never remembered by the controller alone.

    FleetError
    ├── ProvisionerAwayError   it does not answer now; ask again
    └── FleetSetupError        something is missing on this machine; the text says how to mend it
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.policy.fleet import Market, NodeId, Offer, ZoneId
from cluster.policy.reconcile import Machine
from serve_app.errors import ArrieroError


@dataclass(eq=False)
class FleetError(ArrieroError):
    """A command on the fleet cannot go on."""


@dataclass(eq=False)
class ProvisionerAwayError(FleetError):
    """SkyPilot or Ray does not answer now. Nothing is known, so nothing is to be done."""


@dataclass(eq=False)
class FleetSetupError(FleetError):
    """Something is missing: SkyPilot, a cloud's credentials, a running platform."""


class Provisioner(Protocol):
    """Machines by name. Names begin with the fleet's own and are never used twice."""

    def list_offers(self) -> Sequence[Offer]:
        """Return what each zone asks for a node.

        Raises:
            FleetSetupError: No cloud may be used, or the description of a node is wrong.
        """

    def remarks(self) -> Sequence[str]:
        """Return what people should know of the offers that were listed last, a line each."""

    def describe_kind(self, zone: ZoneId, market: Market) -> str:
        """Return what a node of an offer is, for people; the offers were listed before."""

    def list_machines(self) -> Sequence[Machine]:
        """Return every machine of the fleet, whoever asked for it, and refused launches.

        Raises:
            ProvisionerAwayError: Nothing is known now.
        """

    def launch(self, node: NodeId, zone: ZoneId, market: Market) -> None:
        """Ask for a machine, and return at once. Asking twice for a name gets one machine.

        Raises:
            ProvisionerAwayError: It may have been asked for or not; `list_machines` will tell.
        """

    def end(self, node: NodeId) -> None:
        """End a machine, a starting one too. One that is not there is no error.

        Raises:
            ProvisionerAwayError: Ask again.
        """

    def close(self) -> None:
        """Let go of what talks to the clouds. Machines stay."""
