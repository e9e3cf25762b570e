"""Settings of a platform that is one of several cells behind a front."""

import os
import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from serve_app.config_front import CellUrl, KeyReference
from serve_app.config_section import Section
from serve_app.errors import ConfigError
from serve_app.names import Form

_ENV = "env:"
_LEAST_KEY = 16


_NAME = r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?"
CellNameOrVariable = Annotated[
    str,
    AfterValidator(
        Form(rf"{_NAME}|{_ENV}[A-Za-z_][A-Za-z0-9_]*", "at most 40 of a-z, 0-9 and -, or env:NAME")
    ),
]


class CellMembership(Section):
    """This platform as one of several cells: limits and turns of tenants then hold over all."""

    name: CellNameOrVariable
    """Its name, which no other cell has or had; or `env:NAME`, a variable that holds it, as in one
    file for several cells."""
    bank: CellUrl
    """Address of the front whose `front.bank` keeps count for all cells."""
    key: KeyReference = "env:ARRIERO_CELLS_KEY"
    """`env:NAME`: the variable that holds the key which all cells and their bank share, in the
    environment of the ledger and the routers."""
    period_s: Annotated[float, Field(ge=0.05, le=60, allow_inf_nan=False)] = 1.0
    """Seconds from one exchange with the bank to the next."""
    most_ahead: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 100_000.0
    """Service by which a tenant is put behind others here, at most, for what other cells serve it.
    In tokens as `fairness` counts them, by weight. 0 leaves each cell's turns to itself."""
    reaches_others: bool = False
    """Whether the machines of all cells reach one another, as on one private network that lets
    Ray's ports through. Then requests that lose their model's last engine here go on in another
    cell, and theirs here. Gateways, too, need the key then."""
    only_gateways: bool = False
    """Whether this cell has no engines and all its requests run in other cells: what it answers
    then outlives any of those. For a machine that stays. Needs `reaches_others`."""

    @model_validator(mode="after")
    def _check_reach(self) -> Self:
        if self.only_gateways and not self.reaches_others:
            raise ValueError(
                "only_gateways needs reaches_others: without engines of its own a cell has to "
                "reach those of others; set reaches_others: true"
            )
        return self


def read_cell_name(settings: CellMembership) -> str:
    """Return this cell's name.

    Raises:
        ConfigError: The variable that should hold it does not.
    """
    if not settings.name.startswith(_ENV):
        return settings.name
    variable = settings.name.removeprefix(_ENV)
    name = os.environ.get(variable, "")
    if re.fullmatch(_NAME, name) is None:
        raise ConfigError(
            f"cell.name is {settings.name!r}, but the variable {variable} holds no name here: at "
            "most 40 of a-z, 0-9 and -. Set it where Ray is started."
        )
    return name


def read_cells_key(reference: str) -> str:
    """Return the key that cells and their bank share.

    Raises:
        ConfigError: There is none, or it is short.
    """
    name = reference.removeprefix(_ENV)
    key = os.environ.get(name, "")
    if len(key) < _LEAST_KEY or not (key.isascii() and key.isprintable()):
        problem = "is not set" if not key else f"holds no key of {_LEAST_KEY} or more characters"
        raise ConfigError(
            f"The variable {name} {problem} here. Set it to the same secret for every cell and for "
            "the front; `openssl rand -hex 32` makes one."
        )
    return key
