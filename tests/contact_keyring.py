"""The keys of contacts in tests: beside each log, as the service has them, under one master key."""

import base64
import os

from adapters.contact_keys import ContactKeys
from api.keys import contact_keys_of, prepare_keys
from api.settings import Settings

os.environ.setdefault("CONVERSAS_MASTER_KEYS", base64.b64encode(bytes(range(32))).decode())


def keys_of(database: str) -> ContactKeys:
    """The keys that the service uses with the log in ``database``; over a connection of its own, made when needed."""
    settings = Settings(database_url=database)
    prepare_keys(settings, database)
    return contact_keys_of(settings, database)
