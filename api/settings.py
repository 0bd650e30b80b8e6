"""Settings: environment variables `CONVERSAS_…`, all of them here, checked at start.

Invariant: nothing else reads the environment; a wrong value ends the program with the variable's name.
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "CONVERSAS_"
NOT_SETTINGS = {"CONVERSAS_SUPERVISOR_PID", "CONVERSAS_CAMPAIGN"}
"""What the supervisor tells its children, and what the long fault campaigns are switched on with."""
SHORTEST_TOKEN = 16


class Settings(BaseSettings):
    """What can be set. `conversas settings` prints this list with the values in force."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    database_url: Annotated[
        str | None, Field(description="PostgreSQL 15 or newer, as a connection URL; without it one is embedded")
    ] = None
    data_directory: Annotated[Path, Field(description="where the embedded PostgreSQL and the local Kafka live")] = Path(
        ".data"
    )
    host: Annotated[str, Field(description="address to serve on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535, description="port to serve on")] = 8000
    bootstrap_token: Annotated[
        SecretStr | None,
        Field(
            description="the demo workspace's first admin's access token, 16 characters or more; else one is made up"
        ),
    ] = None
    kafka_bootstrap_servers: Annotated[
        str | None, Field(description="host:port of Kafka brokers, comma-separated; without it nothing is published")
    ] = None
    kafka_partitions: Annotated[
        int, Field(ge=1, le=10_000, description="partitions of the events topic, fixed once it is made")
    ] = 24
    kafka_replication_factor: Annotated[int, Field(ge=1, le=9, description="copies of each partition")] = 1
    writer_queue_limit: Annotated[
        int, Field(ge=1, le=1_000_000, description="commands that may wait before 503 is answered")
    ] = 2_000
    writer_batch_limit: Annotated[int, Field(ge=1, le=10_000, description="commands in one transaction, at most")] = 500
    cached_states: Annotated[
        int, Field(ge=100, le=10_000_000, description="folded states kept in memory, about 1 kB each")
    ] = 20_000
    read_connections: Annotated[int, Field(ge=1, le=100, description="database connections for queries")] = 4
    token_cache_seconds: Annotated[
        float, Field(ge=0, le=5, description="how long a token's rights are remembered: a revocation takes so long")
    ] = 2.0
    max_body_bytes: Annotated[int, Field(ge=1_024, le=100_000_000, description="largest request body")] = 1_000_000
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="what is logged")] = "info"

    @field_validator("bootstrap_token")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value) < SHORTEST_TOKEN:
            raise ValueError(f"a token has at least {SHORTEST_TOKEN} characters")
        return value

    @field_validator("database_url")
    @classmethod
    def _a_connection_url(cls, value: str | None) -> str | None:
        try:
            conninfo_to_dict(value or "")
        except ProgrammingError as error:
            raise ValueError(f"it should look like postgresql://user:password@host/database ({error})") from None
        return value


def load() -> Settings:
    """The settings in force.

    Raises `SystemExit` with one line per wrong variable, misspelt ones among them.
    """
    lines = _misspelt()
    try:
        settings = Settings()
    except ValidationError as error:
        lines += [f"{PREFIX}{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
    if lines:
        raise SystemExit("\n".join(["These settings are wrong; 'conversas settings' lists all:", *lines]))
    return settings


def _misspelt() -> list[str]:
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    found = []
    for name in os.environ:
        if name.upper().startswith(PREFIX) and name.upper() not in {*known, *NOT_SETTINGS}:
            close = difflib.get_close_matches(name.upper(), known, 1)
            found.append(f"{name}: there is no such setting" + (f"; did you mean {close[0]}?" if close else ""))
    return found


def rows(settings: Settings) -> list[tuple[str, str, str]]:
    """Variable, value in force (secrets hidden) and meaning of each setting."""
    return [
        (f"{PREFIX}{name.upper()}", _shown(value), field.description or "")
        for name, field in Settings.model_fields.items()
        for value in [getattr(settings, name) if name != "database_url" else _without_password(settings.database_url)]
    ]


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def _without_password(url: str | None) -> str | None:
    if not url:
        return url
    parts = {name: "***" if "password" in name else str(value) for name, value in conninfo_to_dict(url).items()}
    return make_conninfo("", **parts)
