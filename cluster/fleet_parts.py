"""Builds a fleet's controller from the settings: on this machine, or through SkyPilot."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.bootstrap import ROOT
from cluster.controller import Controller
from cluster.fleet_book import FleetBook
from cluster.local import STATE_FILE
from cluster.local_nodes import LocalNodeShape, LocalProvisioner, LocalZone
from cluster.local_ray import ensure_token, node_environment
from cluster.local_state import find_processes, load_state
from cluster.members import CellMembers, Members, RayMembers
from cluster.provisioner import FleetSetupError, Provisioner
from cluster.sky_provisioner import SkyBridge, SkyProvisioner
from serve_app.config_file import FleetFile
from serve_app.config_fleet import FleetSettings, LocalProvisionerSettings, SkyPilotProvisioner


@dataclass(frozen=True)
class FleetParts:
    """What commands on a fleet use.

    Attributes:
        ray_head: HOST:PORT of the Ray cluster that its nodes join; empty where each is its own.
    """

    settings: FleetSettings
    book: FleetBook
    provisioner: Provisioner
    members: Members
    ray_head: str = ""

    def controller(self, tell: Callable[[str], None]) -> Controller:
        """Return a controller of this fleet."""
        return Controller(self.settings, self.provisioner, self.members, self.book, tell)


def build_fleet(file: FleetFile) -> FleetParts:
    """Return the parts of a fleet.

    Raises:
        FleetSetupError: The platform that local nodes join does not run.
    """
    settings, folder = file.fleet, folder_of(file)
    match settings.provisioner:
        case LocalProvisionerSettings():
            provisioner, members, head = _build_local(file, settings.provisioner, folder)
        case SkyPilotProvisioner():
            provisioner, members, head = _build_sky(file, settings.provisioner, folder)
    return FleetParts(settings, FleetBook(folder), provisioner, members, head)


def folder_of(file: FleetFile) -> Path:
    """Return where a fleet's files are."""
    base = Path(file.state_dir) if file.state_dir else STATE_FILE.parent
    return base.resolve() / "fleet" / file.fleet.name


def _build_local(
    file: FleetFile, local: LocalProvisionerSettings, folder: Path
) -> tuple[Provisioner, Members, str]:
    state = load_state(STATE_FILE)
    if state is None or not find_processes(state.mark):
        raise FleetSetupError(
            "no platform runs on this machine, and local nodes live and end with one. Start it "
            f"first: `arriero up {file.path}`."
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    ensure_token(os.environ)
    provisioner = LocalProvisioner(
        file.fleet.name,
        [LocalZone(z.name, z.spot_usd_per_h, z.on_demand_usd_per_h, z.room) for z in local.zones],
        LocalNodeShape(local.cpus, local.resources, local.start_s),
        state.ray_address,
        folder / "nodes",
        Path(state.folder) / "n",
        node_environment(os.environ, state.mark) | {"ARRIERO_STATE_DIR": str(STATE_FILE.parent)},
    )
    return provisioner, RayMembers(state.ray_address), state.ray_address


def _build_sky(
    file: FleetFile, sky: SkyPilotProvisioner, folder: Path
) -> tuple[Provisioner, Members, str]:
    task = (file.path.parent / sky.file).resolve()
    if not task.exists():
        raise FleetSetupError(
            f"{task} is not there; fleet.provisioner.file of {file.path} names it."
        )
    python = Path(sky.python) if os.path.isabs(sky.python) else ROOT / sky.python
    bridge = SkyBridge(python, folder / "sky.log")
    envs = {"RAY_HEAD": sky.ray_head, **sky.envs} if sky.ray_head else sky.envs
    provisioner = SkyProvisioner(file.fleet.name, task, envs, bridge, sky.accelerators)
    if sky.ray_head is None:
        return provisioner, CellMembers(sky.port), ""
    os.environ["RAY_AUTH_MODE"] = "token"
    return provisioner, RayMembers(sky.ray_head), sky.ray_head
