"""Settings: environment variables `CONVERSAS_…`, all of them here, checked at start.

Invariant: nothing else reads the environment; a wrong value ends the program with the variable's name.
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "CONVERSAS_"
NOT_SETTINGS = {"CONVERSAS_SUPERVISOR_PID", "CONVERSAS_CAMPAIGN", "CONVERSAS_WITNESS_TOKEN"}
"""What the supervisor tells its children, and what the long fault campaigns are switched on with."""
SHORTEST_TOKEN = 16
SCHEMA_SUFFIX = ".json"
_URL = r"^(https://[!-?A-~]+|http://(127\.0\.0\.1|localhost|\[::1\])([:/][!-?A-~]*)?)$"
"""What comes from there must not be changed on the way."""
_ALGORITHM = "((RS|PS|ES)(256|384|512)|EdDSA)"


class Settings(BaseSettings):
    """What can be set. `conversas settings` prints this list with the values in force."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    database_url: Annotated[
        str | None, Field(description="PostgreSQL 16 or newer, as a connection URL; without it one is embedded")
    ] = None
    keys_database_url: Annotated[
        str | None,
        Field(description="where the keys of contacts are; without it, a database beside the log's, named …_keys"),
    ] = None
    master_keys: Annotated[
        SecretStr | None,
        Field(description="master keys, comma-separated, the first one current; 'conversas keys new' makes one"),
    ] = None
    master_key_file: Annotated[
        Path | None,
        Field(description="the file with them, one per line; with an embedded database one is made up without any"),
    ] = None
    vault_url: Annotated[
        str | None,
        Field(pattern=_URL, description="OpenBao or HashiCorp Vault, whose transit engine then has the master key"),
    ] = None
    vault_key: Annotated[
        str, Field(pattern=r"^([a-zA-Z0-9_-]+/)+[a-zA-Z0-9_-]+$", description="the engine's mount, and the key's name")
    ] = "transit/conversas"
    vault_token_file: Annotated[
        Path | None,
        Field(validate_default=True, description="the file with the token for it, read anew each time: it may change"),
    ] = None
    vault_ca_file: Annotated[
        Path | None, Field(description="certificates of those who may sign its own (PEM); else the system's")
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
    kafka_topic_prefix: Annotated[
        str, Field(pattern=r"^[a-zA-Z0-9._-]{1,100}$", description="what the names of the topics begin with")
    ] = "conversations"
    kafka_publishers: Annotated[
        int, Field(ge=1, le=100, description="publishers among whom the log is shared, one process each")
    ] = 1
    kafka_security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], Field(description="how Kafka is spoken to")
    ] = "PLAINTEXT"
    kafka_sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None, Field(description="how we say who we are, with SASL")
    ] = None
    kafka_sasl_username: Annotated[str | None, Field(description="who we are, with SASL")] = None
    kafka_sasl_password: Annotated[
        SecretStr | None, Field(validate_default=True, description="the password for it")
    ] = None
    kafka_ssl_cafile: Annotated[
        Path | None, Field(description="certificates of those who may sign the brokers' (PEM); else the system's")
    ] = None
    kafka_ssl_certfile: Annotated[Path | None, Field(description="our own certificate (PEM), for mutual TLS")] = None
    kafka_ssl_keyfile: Annotated[
        Path | None, Field(validate_default=True, description="the key of our own certificate (PEM)")
    ] = None
    kafka_ssl_password: Annotated[SecretStr | None, Field(description="what that key is encrypted with")] = None
    public_url: Annotated[
        str | None, Field(pattern=_URL, description="where clients and browsers reach this service")
    ] = None
    writer_queue_limit: Annotated[
        int, Field(ge=1, le=1_000_000, description="commands that may wait before 503 is answered")
    ] = 2_000
    writer_batch_limit: Annotated[int, Field(ge=1, le=10_000, description="commands in one transaction, at most")] = 500
    cached_states: Annotated[
        int, Field(ge=100, le=10_000_000, description="folded states kept in memory, about 1 kB each")
    ] = 20_000
    bulk_chunk: Annotated[
        int, Field(ge=1, le=1_000, description="commands of a bulk action that wait for the writer at a time")
    ] = 200
    bulk_keep_days: Annotated[
        int, Field(ge=1, le=3_650, description="days for which the results of a bulk action are kept after its end")
    ] = 30
    read_connections: Annotated[int, Field(ge=1, le=100, description="database connections for queries")] = 6
    token_cache_seconds: Annotated[
        float, Field(ge=0, le=5, description="how long a token's rights are remembered: a revocation takes so long")
    ] = 2.0
    presence_seconds: Annotated[
        float, Field(ge=1, le=3_600, description="how long after an agent's last sign of life they count as offline")
    ] = 60.0
    open_streams: Annotated[
        int, Field(ge=0, le=100_000, description="event streams that one process serves at a time; beyond it 503")
    ] = 2_000
    oidc_issuer: Annotated[
        str | None,
        Field(pattern=_URL, description="OpenID Connect issuer that says who it is; without it only our own tokens do"),
    ] = None
    oidc_client_id: Annotated[
        str | None,
        Field(min_length=1, description="what we are to it, so that people can sign in there to the pages; else not"),
    ] = None
    oidc_client_secret_file: Annotated[
        Path | None, Field(description="the file with our secret there; without it we are a public client")
    ] = None
    oidc_audience: Annotated[
        str | None,
        Field(
            min_length=1,
            validate_default=True,
            description="whom its access tokens must be for, and nobody else as well; without it none are taken",
        ),
    ] = None
    oidc_jwks_url: Annotated[
        str | None, Field(pattern=_URL, description="its public keys; without it, where its discovery document says")
    ] = None
    oidc_algorithms: Annotated[
        str, Field(pattern=rf"^{_ALGORITHM}(,{_ALGORITHM})*$", description="signatures taken, comma-separated")
    ] = "RS256,ES256"
    oidc_token_type: Annotated[
        Literal["at+jwt", "JWT"], Field(description="`typ` that its tokens have: at+jwt (RFC 9068) or JWT")
    ] = "at+jwt"  # noqa: S105  # a media type
    oidc_subject_claim: Annotated[str, Field(min_length=1, description="the claim that names the person")] = "sub"
    oidc_workspace_claim: Annotated[
        str, Field(min_length=1, description="the claim that names the workspace by its slug")
    ] = "workspace"
    oidc_workspace: Annotated[
        str | None, Field(description="the one workspace that all its tokens are for; without it the claim says")
    ] = None
    oidc_leeway_seconds: Annotated[int, Field(ge=0, le=120, description="by how much clocks may differ")] = 30
    oidc_longest_life_seconds: Annotated[
        int, Field(ge=60, le=2_592_000, description="from a token's issue to its expiry, at most")
    ] = 86_400
    oidc_not_before_required: Annotated[
        bool, Field(description="whether a token must say `nbf`: Auth0, Keycloak and Okta leave it out")
    ] = True
    checkpoint_origin: Annotated[
        str,
        Field(pattern=r"^[!-*,-.0-~][!-*,-~]{0,199}$", description="what checkpoints call this service: your domain"),
    ] = "conversas.local"
    checkpoint_key: Annotated[
        SecretStr | None, Field(description="Ed25519 private key in PEM that signs checkpoints; else one from a file")
    ] = None
    checkpoint_key_file: Annotated[
        Path | None, Field(description="the file with that key; without both, one is made up in the data directory")
    ] = None
    session_key: Annotated[
        SecretStr | None,
        Field(min_length=32, description="signs sessions of the pages, 32 characters or more; else one from a file"),
    ] = None
    max_body_bytes: Annotated[int, Field(ge=1_024, le=100_000_000, description="largest request body")] = 1_000_000
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="what is logged")] = "info"

    @field_validator("vault_token_file")
    @classmethod
    def _token_for_it(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if (value is None) != (info.data.get("vault_url") is None):
            raise ValueError(f"set it together with {PREFIX}VAULT_URL")
        return value

    @field_validator("kafka_sasl_password")
    @classmethod
    def _kafka_knows_us(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        given = [info.data.get("kafka_sasl_mechanism"), info.data.get("kafka_sasl_username"), value]
        wanted = str(info.data.get("kafka_security_protocol")).startswith("SASL")
        if (any(given) or wanted) and not (all(given) and wanted):
            raise ValueError(
                f"with {PREFIX}KAFKA_SECURITY_PROTOCOL=SASL_SSL or SASL_PLAINTEXT, and only then, set it together with "
                f"{PREFIX}KAFKA_SASL_MECHANISM and {PREFIX}KAFKA_SASL_USERNAME"
            )
        return value

    @field_validator("kafka_ssl_keyfile")
    @classmethod
    def _key_and_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if (value is None) != (info.data.get("kafka_ssl_certfile") is None):
            raise ValueError(f"set it together with {PREFIX}KAFKA_SSL_CERTFILE")
        return value

    @field_validator("oidc_client_id")
    @classmethod
    def _comes_back(cls, value: str | None, info: ValidationInfo) -> str | None:
        for name in ("oidc_issuer", "public_url"):
            if value is not None and info.data.get(name) is None:
                raise ValueError(f"it needs {PREFIX}{name.upper()}: where people sign in, and where they come back to")
        return value

    @field_validator("oidc_client_secret_file")
    @classmethod
    def _is_a_secret(cls, value: Path | None) -> Path | None:
        if value is not None and not _text_of(value):
            raise ValueError("it is empty")
        return value

    @field_validator("oidc_audience")
    @classmethod
    def _for_whom(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("oidc_issuer") and not info.data.get("oidc_client_id"):
            raise ValueError(f"{PREFIX}OIDC_ISSUER needs it: else its tokens for anybody else would do")
        return value

    @field_validator("bootstrap_token")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value) < SHORTEST_TOKEN:
            raise ValueError(f"a token has at least {SHORTEST_TOKEN} characters")
        return value

    @field_validator("database_url", "keys_database_url")
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


def oidc_client_secret(settings: Settings) -> str | None:
    """Our secret at the outside issuer; None where we have none."""
    file = settings.oidc_client_secret_file
    return None if file is None else _text_of(file)


def _text_of(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"it cannot be read: {error}") from None


def schema_base(settings: Settings) -> str:
    """What stands before a schema's name in its address."""
    return f"{(settings.public_url or f'http://{settings.host}:{settings.port}').rstrip('/')}/schemas/"


def kafka_security(settings: Settings) -> dict[str, Any]:
    """TLS and SASL as kafka-python wants to be told; nothing for what is not set."""
    given = {
        "security_protocol": settings.kafka_security_protocol,
        "sasl_mechanism": settings.kafka_sasl_mechanism,
        "sasl_plain_username": settings.kafka_sasl_username,
        "sasl_plain_password": settings.kafka_sasl_password,
        "ssl_cafile": settings.kafka_ssl_cafile,
        "ssl_certfile": settings.kafka_ssl_certfile,
        "ssl_keyfile": settings.kafka_ssl_keyfile,
        "ssl_password": settings.kafka_ssl_password,
    }
    plain = {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in given.items()}
    return {name: str(value) for name, value in plain.items() if value is not None}


def rows(settings: Settings) -> list[tuple[str, str, str]]:
    """Variable, value in force (secrets hidden) and meaning of each setting."""
    return [
        (f"{PREFIX}{name.upper()}", _shown(value), field.description or "")
        for name, field in Settings.model_fields.items()
        for value in [
            _without_password(getattr(settings, name)) if name.endswith("database_url") else getattr(settings, name)
        ]
    ]


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def _without_password(url: str | None) -> str | None:
    if not url:
        return url
    parts = {name: "***" if "password" in name else str(value) for name, value in conninfo_to_dict(url).items()}
    return make_conninfo("", **parts)
