"""The keys of contacts, from where the settings say: their database, and the master key that opens them.

Invariant: a master key that was named is never made up; one is made up only beside an embedded database.
"""

from adapters import contact_keys
from adapters.contact_keys import ContactKeys
from adapters.master_keys import LocalMasterKeys, MasterKeyError, MasterKeys, MasterKeysAwayError
from api.settings import PREFIX, Settings

DEFAULT_FILE = "master.key"


def keys_url(settings: Settings, database_url: str) -> str:
    """The database of the keys that belong to the log at ``database_url``."""
    return settings.keys_database_url or contact_keys.beside(database_url)


def prepare_keys(settings: Settings, database_url: str) -> None:
    """Make the keys' table, and unless it was named, their database."""
    url = keys_url(settings, database_url)
    contact_keys.prepare(url, server=None if settings.keys_database_url else database_url)


def master_keys(settings: Settings) -> MasterKeys:
    """The master keys in force; the first time with an embedded database, a new one in the data directory.

    Nothing is asked of a key service yet. Raises `SystemExit`, with the setting to look at.
    """
    try:
        keys = _local(settings)
        if settings.vault_url is not None and settings.vault_token_file is not None:
            from adapters.vault_keys import VaultMasterKeys  # noqa: PLC0415  # an HTTP client that others need not load

            ca_file = settings.vault_ca_file
            return VaultMasterKeys(
                settings.vault_url, settings.vault_key, settings.vault_token_file, ca_file=ca_file, older=keys
            )
        if keys is None and settings.database_url is None:
            keys = LocalMasterKeys.read(settings.data_directory / DEFAULT_FILE, make=True)
    except MasterKeyError as error:
        raise SystemExit(f"{PREFIX}MASTER_KEYS, {PREFIX}MASTER_KEY_FILE or {PREFIX}VAULT_CA_FILE: {error}") from None
    if keys is None:
        raise SystemExit(
            f"Set {PREFIX}MASTER_KEY_FILE, {PREFIX}MASTER_KEYS or {PREFIX}VAULT_URL: personal data is encrypted, and"
            " with a database of your own its master key is yours to keep ('conversas keys new' makes one)."
        )
    return keys


def _local(settings: Settings) -> LocalMasterKeys | None:
    """The keys that are set, or that were made up once."""
    if settings.master_keys is not None:
        return LocalMasterKeys.parse(settings.master_keys.get_secret_value())
    if settings.master_key_file is not None:
        return LocalMasterKeys.read(settings.master_key_file, make=False)
    made_up = settings.data_directory / DEFAULT_FILE
    return LocalMasterKeys.read(made_up, make=False) if settings.database_url is None and made_up.exists() else None


def check_master_keys(settings: Settings) -> None:
    """Say at once, with `SystemExit`, what would fail later: that the master key is not there."""
    try:
        master_keys(settings).current()
    except (MasterKeyError, MasterKeysAwayError) as error:
        raise SystemExit(f"{PREFIX}VAULT_URL, {PREFIX}VAULT_KEY or {PREFIX}VAULT_TOKEN_FILE: {error}") from None


def contact_keys_of(settings: Settings, database_url: str) -> ContactKeys:
    """The keys that belong to the log at ``database_url``; nothing is asked of their database yet."""
    return ContactKeys(keys_url(settings, database_url), master_keys(settings))
