"""Settings: environment variables `CONVERSAS_…`, all of them here, checked at start.

Invariant: nothing else reads the environment; a wrong value ends the program with the variable's name.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "CONVERSAS_"


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
        Field(min_length=16, description="access token of the demo workspace's first admin; else one is made up"),
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


def load() -> Settings:
    """The settings in force.

    Raises `SystemExit` with one line per wrong variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"{PREFIX}{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
        raise SystemExit("\n".join(["These settings are wrong:", *lines])) from None


def rows(settings: Settings) -> list[tuple[str, str, str]]:
    """Variable, value in force (secrets hidden) and meaning of each setting."""
    return [
        (f"{PREFIX}{name.upper()}", _shown(getattr(settings, name)), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def _shown(value: Any) -> str:
    return "" if value is None else str(value)
