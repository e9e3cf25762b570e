"""Settings of the front: one address over several cells."""

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from serve_app.config_section import Seconds, Section
from serve_app.config_store import Where
from serve_app.names import Form

Port = Annotated[int, Field(ge=1, le=65_535)]
CellName = Annotated[
    str,
    AfterValidator(Form(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", "at most 40 of a-z, 0-9 and -")),
]
CellUrl = Annotated[
    str,
    AfterValidator(
        Form(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?/?", "http:// or https:// with HOST and :PORT")
    ),
]
HostAddress = Annotated[
    str, AfterValidator(Form(r"[A-Za-z0-9.:-]{1,253}", "an address or a host's name"))
]
ZonePath = Annotated[
    str,
    AfterValidator(
        Form(r"([a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*){0,2})?", "CLOUD/REGION/ZONE, or its start")
    ),
]


KeyReference = Annotated[
    str,
    AfterValidator(
        Form(
            r"env:[A-Za-z_][A-Za-z0-9_]*",
            "env:NAME, where the variable NAME holds the key; a file is no place for it",
        )
    ),
]


class BankSettings(Section):
    """Keeps count for all cells, so that limits and turns hold over them. One front has it."""

    port: Port = 8081
    """Port of 127.0.0.1 that it listens on; cells reach it through the front's own address."""
    key: KeyReference = "env:ARRIERO_CELLS_KEY"
    """`env:NAME`: the variable that holds the key which all cells and their bank share."""


class CellSettings(Section):
    """A cell that the front knows from here, besides those of the fleet."""

    name: CellName
    """Its name, which answers carry as `x-arriero-cell`."""
    url: CellUrl
    """Where its gateways are reached. Of https, certificates are checked against the system's."""
    zone: ZonePath = ""
    """Where it is, as CLOUD/REGION/ZONE. Empty is far from everything."""
    usd_per_h: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] | None = None
    """US dollars an hour that it costs. None is not known, and dearer than what is."""


class FrontSettings(Section):
    """One address over several cells. `arriero front` runs it."""

    host: HostAddress = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8080
    """Port to listen on."""
    certificate: Where | None = None
    """PEM file with a certificate and its key. None speaks plain HTTP, which keys should not cross
    a network in."""
    metrics_port: Port | None = None
    """Port of 127.0.0.1 where HAProxy shows its metrics. None shows none."""
    cells: Annotated[tuple[CellSettings, ...], Field(strict=False)] = ()
    """Cells. Those that `arriero fleet up` on this machine keeps come by themselves."""
    bank: BankSettings | None = None
    """Keeps count for all cells. None leaves that to another front, or each cell to itself."""
    zone: ZonePath = ""
    """Where the front is, as CLOUD/REGION/ZONE: nearer cells are filled first. Empty is nowhere."""
    fill: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.8
    """Part of the places of near and cheap cells that is taken before farther or dearer ones get
    more than a trickle."""
    period_s: Annotated[float, Field(ge=0.1, le=60, allow_inf_nan=False)] = 1.0
    """Seconds from one look at the cells to the next."""
    timeout_s: Seconds = 3600.0
    """Seconds without a byte after which an answer is given up."""
    retry_body_bytes: Annotated[int, Field(ge=16_384, le=16 << 20)] = 1 << 18
    """Longest request in bytes that is sent to another cell when its own dies before the first byte
    of an answer. A longer one goes elsewhere only if it could not be sent at all."""
    stop_s: Seconds = 300.0
    """Seconds that answers get to end when the front stops."""

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        names = [cell.name for cell in self.cells]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"cells has {twice!r} twice; rename or remove one")
        return self


def address_of(url: str) -> tuple[str, int, bool]:
    """Return host, port and whether it is spoken to over TLS."""
    parts = urlsplit(url)
    is_safe = parts.scheme == "https"
    return parts.hostname or "", parts.port or (443 if is_safe else 80), is_safe
