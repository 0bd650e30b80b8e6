"""The keys of contacts, from where the settings say: their database, and the master key that opens them.

Invariant: a master key that was named is never made up; one is made up only beside an embedded database.
"""

from adapters import contact_keys
from adapters.contact_keys import ContactKeys
from adapters.master_keys import LocalMasterKeys, MasterKeyError
from api.settings import PREFIX, Settings

DEFAULT_FILE = "master.key"


def keys_url(settings: Settings, database_url: str) -> str:
    """The database of the keys that belong to the log at ``database_url``."""
    return settings.keys_database_url or contact_keys.beside(database_url)


def prepare_keys(settings: Settings, database_url: str) -> None:
    """Make the keys' table, and unless it was named, their database."""
    url = keys_url(settings, database_url)
    contact_keys.prepare(url, server=None if settings.keys_database_url else database_url)


def master_keys(settings: Settings) -> LocalMasterKeys:
    """The master keys in force; the first time with an embedded database, a new one in the data directory.

    Raises `SystemExit`, with the setting to look at.
    """
    try:
        if settings.master_keys is not None:
            return LocalMasterKeys.parse(settings.master_keys.get_secret_value())
        if settings.master_key_file is not None:
            return LocalMasterKeys.read(settings.master_key_file, make=False)
        if settings.database_url is None:
            return LocalMasterKeys.read(settings.data_directory / DEFAULT_FILE, make=True)
    except MasterKeyError as error:
        raise SystemExit(f"{PREFIX}MASTER_KEYS or {PREFIX}MASTER_KEY_FILE: {error}") from None
    raise SystemExit(
        f"Set {PREFIX}MASTER_KEY_FILE or {PREFIX}MASTER_KEYS: personal data is encrypted, and with a database of your"
        " own its master key is yours to keep ('conversas keys new' makes one)."
    )


def contact_keys_of(settings: Settings, database_url: str) -> ContactKeys:
    """The keys that belong to the log at ``database_url``; nothing is asked of their database yet."""
    return ContactKeys(keys_url(settings, database_url), master_keys(settings))
