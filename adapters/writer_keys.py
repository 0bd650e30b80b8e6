"""The keys that the writer seals with, known under the append lock.

The log decides who is erased, the keys follow: a key that was learned stays good only while the log, as it is under the
lock, does not say otherwise.

Invariant: nothing is sealed for a contact whom the log has erased; a key is on disk before what is sealed with it.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import psycopg
from cachetools import LRUCache

from adapters import sealing
from adapters.contact_keys import ContactKeys, KeyMissingError, Person, as_json
from adapters.sealing import Cipher
from domain.events import ContactErased

_IS_ERASURE = f"topic = '{ContactErased.TOPIC}'"  # spelt out, or PostgreSQL would not use the index for it
_ERASED_AFTER = f"select workspace_id, stream_id from events where position > %s and {_IS_ERASURE}"
_ERASED = f"""
select workspace_id, contact_id from json_to_recordset(%s) as wanted (workspace_id uuid, contact_id uuid)
where exists (
    select from events e where e.workspace_id = wanted.workspace_id and stream_id = contact_id and {_IS_ERASURE})"""
_BEGINNINGS = """
select contact_id, data from json_to_recordset(%s) as wanted (workspace_id uuid, contact_id uuid)
join events e on e.workspace_id = wanted.workspace_id and e.stream_id = contact_id and version = 1"""


class WriterKeys:
    """The keys of those whom the writer writes about, the latest of them kept in memory."""

    def __init__(self, keys: ContactKeys, limit: int) -> None:
        self._keys = keys
        self._known: LRUCache[Person, Cipher | None] = LRUCache(maxsize=limit)

    def find(self, log: psycopg.Connection[Any], people: Collection[Person]) -> dict[Person, Cipher | None]:
        """The keys of ``people``; None for those who are erased. ``log`` holds the append lock."""
        found = {person: self._known[person] for person in people if person in self._known}
        missing = [person for person in people if person not in found]
        if missing:
            learned = self._keys.find(missing)
            learned |= dict.fromkeys(log.execute(_ERASED, (as_json(missing),), prepare=True).fetchall())
            self._known.update(learned)
            found |= learned
        return found

    def ready(
        self, log: psycopg.Connection[Any], people: Collection[Person], new: Collection[Person]
    ) -> dict[Person, Cipher | None]:
        """As `find`, after each of ``new``, of whom the log holds nothing, has got a key, for good.

        So does each of ``people`` who has none, for what the log holds of them was not sealed.
        """
        unknown = [person for person in new if person not in self._known]
        if unknown:
            self._known.update(self._keys.add(unknown))
        found = self.find(log, {*people, *new})
        without = [person for person in people if person not in found]
        if without:
            for id_, data in log.execute(_BEGINNINGS, (as_json(without),), prepare=True):
                if sealing.is_sealed(data):
                    msg = f"there is no key of contact {id_}: the keys' database does not belong to this log"
                    raise KeyMissingError(msg)
            added = self._keys.add(without)
            self._known.update(added)
            found |= added
        return found

    def erased_after(self, log: psycopg.Connection[Any], position: int) -> Iterable[Person]:
        """Who was erased after ``position``; to be fetched once the pipeline is through."""
        cursor: psycopg.Cursor[Person] = log.cursor()
        return cursor.execute(_ERASED_AFTER, (position,), prepare=True)

    def forget_erased(self, people: Iterable[Person]) -> None:
        """Take note that ``people`` were erased."""
        self._known.update(dict.fromkeys(people))

    def destroy(self, people: Sequence[Person]) -> None:
        """Destroy the keys of ``people``, whom the log has erased for good."""
        self.forget_erased(people)
        self._keys.destroy(people)

    def forget(self) -> None:
        """Keep nothing in memory: the database may be another when it comes back."""
        self._known.clear()
        self._keys.discard_connection()
