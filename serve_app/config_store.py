"""Where tenants, keys and usage are kept."""

import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from serve_app.config_section import Section
from serve_app.errors import ConfigError
from serve_app.names import Form

_ENV = "env:"

Where = Annotated[
    str, AfterValidator(Form(r"/[^\x00]*", "an absolute path; gateways do not run where you typed"))
]
UrlReference = Annotated[
    str,
    AfterValidator(
        Form(
            rf"{_ENV}[A-Za-z_][A-Za-z0-9_]*",
            "env:NAME, where the variable NAME holds postgresql://user:password@host/database; "
            "a file is no place for a password",
        )
    ),
]


class SqliteStore(Section):
    """A file. For gateways that run on one machine."""

    kind: Literal["sqlite"] = "sqlite"
    path: Where | None = None
    """File of the database. None means `store.db` in the state folder."""


class PostgresStore(Section):
    """A PostgreSQL database. For any number of machines."""

    kind: Literal["postgresql"]
    url: UrlReference
    """`env:NAME`: the environment variable of the gateways that holds the database's URL."""


class StoreSettings(Section):
    """Where tenants, keys and usage are kept."""

    database: Annotated[SqliteStore | PostgresStore, Field(discriminator="kind")] = SqliteStore()
    """The database."""
    state_dir: Where | None = None
    """Folder for what must survive a crash of this machine's processes, such as usage not yet
    stored. None means `ARRIERO_STATE_DIR`, or else `~/.local/state/arriero`."""
    usage_batch_rows: Annotated[int, Field(ge=1, le=10_000)] = 500
    """Rows of usage that are written to the database at once."""
    usage_batch_s: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] = 1.0
    """Seconds that a row of usage waits at most for others to be written with."""


def state_dir_of(settings: StoreSettings) -> Path:
    """Return the state folder on this machine."""
    if settings.state_dir is not None:
        return Path(settings.state_dir)
    given = os.environ.get("ARRIERO_STATE_DIR")
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "arriero"


def describe_database(settings: StoreSettings) -> str:
    """Return which database it is, without secrets."""
    if isinstance(settings.database, SqliteStore):
        return settings.database.path or str(state_dir_of(settings) / "store.db")
    return f"the database that {settings.database.url} names"


def fingerprint(settings: StoreSettings) -> str:
    """Return what tells databases apart that several cells may share; empty is a file.

    Raises:
        ConfigError: As `database_url`.
    """
    if isinstance(settings.database, SqliteStore):
        return ""
    where = database_url(settings).rpartition("@")[2]
    return hashlib.sha256(where.encode()).hexdigest()[:16]


def database_url(settings: StoreSettings) -> str:
    """Return the database's address, which may hold a password and must not be shown.

    Raises:
        ConfigError: The variable that should hold it is not set, or holds something else.
    """
    if isinstance(settings.database, SqliteStore):
        return f"sqlite+aiosqlite:///{describe_database(settings)}"
    name = settings.database.url.removeprefix(_ENV)
    url = os.environ.get(name, "")
    scheme, separator, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres") or not separator:
        problem = "is not set" if not url else "does not begin with postgresql://"
        raise ConfigError(
            f"store.database.url is {settings.database.url!r}, but the variable {name} {problem} "
            "here. Set it to postgresql://user:password@host/database for every gateway."
        )
    return f"postgresql+asyncpg://{rest}"
