"""All dashboards, in the order in which they are listed."""

from cluster.monitoring.board_adapters import ADAPTERS
from cluster.monitoring.board_fleet import FLEET
from cluster.monitoring.board_models import MODELS
from cluster.monitoring.board_overview import OVERVIEW
from cluster.monitoring.board_tenants import TENANTS

BOARDS = (OVERVIEW, TENANTS, MODELS, ADAPTERS, FLEET)
