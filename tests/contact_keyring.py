"""The keys of contacts in tests: beside each log, as the service has them, under one master key."""

import base64
import os
from contextlib import closing

from adapters.contact_keys import ContactKeys
from adapters.event_log import EventLog, EventRow, in_clear, people_of
from api.keys import contact_keys_of, prepare_keys
from api.settings import Settings

os.environ.setdefault("CONVERSAS_MASTER_KEYS", base64.b64encode(bytes(range(32))).decode())


def keys_of(database: str) -> ContactKeys:
    """The keys that the service uses with the log in ``database``; over a connection of its own, made when needed."""
    settings = Settings(database_url=database)
    prepare_keys(settings, database)
    return contact_keys_of(settings, database)


def rows_in_clear(database: str) -> list[EventRow]:
    """All of the log in ``database``, as it was decided."""
    rows: list[EventRow] = []
    with EventLog(database) as log, closing(keys_of(database)) as keys:
        while batch := log.read_rows(rows[-1].position if rows else 0, 5_000):
            rows += batch
        ciphers = keys.find(people_of(rows))
    return [in_clear(row, ciphers) for row in rows]
