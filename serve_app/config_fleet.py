"""Settings of the fleet: how many nodes, where they may be, what they may cost."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from serve_app.config_section import Cpus, Seconds, Section
from serve_app.names import Form

_NODES = Field(ge=0, le=10_000)
_USD_PER_H = Field(ge=0, le=1_000_000, allow_inf_nan=False)

Nodes = Annotated[int, _NODES]
UsdPerHour = Annotated[float, _USD_PER_H]
FleetName = Annotated[
    str,
    AfterValidator(
        Form(r"[a-z]([a-z0-9-]{0,18}[a-z0-9])?", "at most 20 of a-z, 0-9 and -, beginning with a-z")
    ),
]
ZoneName = Annotated[str, AfterValidator(Form(r"[a-z0-9][a-z0-9-]{0,30}", "of a-z, 0-9 and -"))]


class FleetBudget(Section):
    """What the fleet may cost: nodes' prices when they were asked for, without nodes that leave."""

    usd_per_h: UsdPerHour | None = None
    """US dollars an hour that all nodes may cost together. None means no cap."""
    shed_first: Literal["spot", "on-demand"] = "on-demand"
    """Market whose nodes go first when the cap is reached: without `on-demand` nodes more are left,
    without `spot` nodes those that stay."""


class SkyPilotProvisioner(Section):
    """Nodes in clouds, through SkyPilot."""

    kind: Literal["skypilot"]
    file: str = "sky/cell.yaml"
    """SkyPilot's task file that each node is launched from, as seen from this file's folder."""
    accelerators: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Which of its kinds may be taken, such as `H100:8`. None means all. A node is a node, whatever
    its kind: name such as serve about as much."""
    python: str = ".venv-sky/bin/python"
    """Python of the environment that has SkyPilot, as seen from the repository's folder."""
    envs: dict[str, str] = Field(default_factory=dict)
    """Values for `envs` of the task file. Secrets are taken from the controller's environment."""
    ray_head: str | None = None
    """HOST:PORT of the Ray cluster that the nodes join (sky/workers.yaml). None means that each
    node is a cell of its own (sky/cell.yaml), which is asked at its `/ready`."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    """Port of the cells' gateways."""


class LocalZoneSettings(Section):
    """A zone of this machine."""

    name: ZoneName
    """Its name."""
    spot_usd_per_h: UsdPerHour | None = None
    """What a spot node is said to cost. None means that there is no spot market."""
    on_demand_usd_per_h: UsdPerHour | None = None
    """What another node is said to cost. None means that there are none."""
    room: Nodes = 8
    """Nodes that it has at most."""


class LocalProvisionerSettings(Section):
    """Nodes on this machine, as processes that join its Ray: to try a fleet out."""

    kind: Literal["local"]
    zones: Annotated[tuple[LocalZoneSettings, ...], Field(strict=False, min_length=1)]
    """The zones."""
    cpus: Cpus = 1.0
    """Processors that each node says it has."""
    resources: dict[str, Annotated[float, Field(gt=0, le=1_000_000)]] = Field(default_factory=dict)
    """Other resources of each node, by Ray's names."""
    start_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 0.0
    """Seconds that a node waits before it starts, as a cloud takes its time."""


class FleetSettings(Section):
    """Nodes that are kept running, spot first. `arriero fleet` plans, starts and shows them."""

    name: FleetName = "arriero"
    """What every node's name begins with. No two fleets of one SkyPilot may share it."""
    target: Nodes
    """Nodes that are to serve."""
    most_target: Nodes | None = None
    """Highest target: from `target` up to it, it follows what the nodes' Ray has no room for. None
    means that it stays at `target`."""
    idle_s: Seconds = 600.0
    """Seconds for which fewer nodes have to be enough before the target falls again."""
    floor: Nodes = 0
    """Ready nodes below which nothing is ended and no budget counts."""
    goal: Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)] = 0.999
    """Share of all time with the target's nodes. On-demand nodes are started where spot ones alone
    are not expected to reach it."""
    most_spare: Nodes = 3
    """Spot nodes beyond the target at most."""
    probe_every_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 1200.0
    """While on-demand nodes are paid for, each zone without a node of the fleet is asked for a spot
    node so often, in seconds. The node is ended as soon as it is up: it shows that the zone has
    room, and zones that had it for long are safe. 0 never asks."""
    start_up_s: Seconds = 900.0
    """Seconds from a launch to a node that serves, to reckon with until it has been measured. A
    cell that answers and is not ready, as an engine starts anew, gets as long before it is
    replaced."""
    give_up_s: Seconds = 3600.0
    """Seconds after which a node that has never served is ended, and another one asked for."""
    notice_s: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 0.0
    """Notice of a reclaim that can be relied on, in seconds. AWS gives 120, Google Cloud and Azure
    30, others none."""
    paid_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 60.0
    """Seconds that a node is paid for at least, however soon it is ended: clouds charge a minute or
    more. On-demand nodes that spot nodes have made needless stay for so long."""
    drain_s: Seconds = 120.0
    """Seconds that a node which is ended gets to finish what it runs."""
    period_s: Annotated[float, Field(ge=0.1, le=600, allow_inf_nan=False)] = 10.0
    """Seconds from one look at the fleet to the next."""
    budget: FleetBudget = FleetBudget()
    """What it may cost."""
    tokens_per_h: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Tokens, weighted as fair turns count them, that one node serves in an hour at most. Reports
    of cost then show what of serving time was idle; with None, tenants bear all of it."""
    provisioner: Annotated[
        SkyPilotProvisioner | LocalProvisionerSettings, Field(discriminator="kind")
    ]
    """Who brings nodes up."""

    @model_validator(mode="after")
    def _check_floor(self) -> Self:
        if self.floor > self.target:
            raise ValueError(
                f"floor is {self.floor} while target is {self.target}; lower the floor or raise "
                "the target"
            )
        return self

    @model_validator(mode="after")
    def _check_most(self) -> Self:
        if self.most_target is None:
            return self
        if self.most_target < self.target:
            raise ValueError(
                f"most_target is {self.most_target} while target is {self.target}; raise "
                "most_target, or lower the target"
            )
        if self.provisioner.kind == "skypilot" and self.provisioner.ray_head is None:
            raise ValueError(
                f"most_target is {self.most_target} while provisioner.ray_head is null: cells of "
                "their own have no Ray that could be asked; name the head that the nodes join, "
                "or remove most_target"
            )
        return self

    @model_validator(mode="after")
    def _check_zones(self) -> Self:
        if self.provisioner.kind == "local":
            names = [zone.name for zone in self.provisioner.zones]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"provisioner.zones has {twice!r} twice; rename or remove one")
        return self
