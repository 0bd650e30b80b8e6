"""Personal fields as ciphertext: what of a stored event can be read only with its contact's key.

``personal``, always an event's last field, is stored as text: base64 of a nonce and AES-256-GCM ciphertext. Bound to it
are workspace, stream, version and field, so that it opens nowhere else. What says nothing personal stays as it is.

Invariant: whatever lacks the key, or looks at another place, reads what an erased contact's event says: nothing.
"""

import hmac
import os
from base64 import b64decode, b64encode
from functools import cache
from hashlib import sha256
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from domain.events import (
    AttributePersonal,
    AttributeSet,
    ContactDetails,
    ContactDetailsChanged,
    ContactRegistered,
    ConversationFinalizedFromInbox,
    ConversationFinalizedFromListing,
    ConversationOpened,
    DetailsChange,
    Fact,
    FinalizedPersonal,
    MessagePersonal,
    MessageReceived,
    MessageSent,
    NoteAdded,
    NotePersonal,
    OpenedPersonal,
)

KEY_BYTES = 32
_NONCE_BYTES = 12


class NotOpenedError(Exception):
    """What was sealed was altered, or belongs to another place or key."""


class Cipher:
    """A contact's key, ready for use."""

    __slots__ = ("_aead", "_digest_key")

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._digest_key = sha256(b"conversas digests\n" + key).digest()

    def seal(self, data: bytes, place: bytes) -> bytes:
        """``data`` as ciphertext that opens for ``place`` only."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, data, place)

    def open(self, sealed: bytes, place: bytes) -> bytes:
        """What was sealed for ``place``.

        Raises `NotOpenedError` where anything of it was changed, key and place included.
        """
        try:
            return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place)
        except (InvalidTag, ValueError) as error:
            raise NotOpenedError("what is sealed does not open: it was altered, or belongs elsewhere") from error

    def digest(self, data: bytes) -> bytes:
        """A digest of ``data`` that confirms no guess once the key is gone."""
        return hmac.digest(self._digest_key, data, "sha256")


NOTHING: dict[str, Fact] = {
    ConversationOpened.TOPIC: OpenedPersonal(),
    ConversationFinalizedFromInbox.TOPIC: FinalizedPersonal(),
    ConversationFinalizedFromListing.TOPIC: FinalizedPersonal(),
    MessageReceived.TOPIC: MessagePersonal(),
    MessageSent.TOPIC: MessagePersonal(),
    NoteAdded.TOPIC: NotePersonal(text=""),
    AttributeSet.TOPIC: AttributePersonal(before=None, after=None),
    ContactRegistered.TOPIC: ContactDetails(),
    ContactDetailsChanged.TOPIC: DetailsChange(before=ContactDetails(), after=ContactDetails()),
}
"""What the events that are about a contact say once nobody can read them any more, by topic."""

CLEAR_IN_READ_MODELS = frozenset(
    {ConversationOpened.TOPIC, AttributeSet.TOPIC, ContactRegistered.TOPIC, ContactDetailsChanged.TOPIC}
)
"""The events whose personal part read models and folded states show."""

_PERSONAL = b'"personal":'
_SEALED = b'"personal":"'
_CONTACT = b'"contact_id":"'
_UUID_LENGTH = 36


@cache
def _nothing(topic: str) -> bytes:
    return NOTHING[topic].model_dump_json().encode()


def place_of(workspace_id: UUID, stream_id: UUID, version: int, topic: str) -> bytes:
    """What a sealed field is bound to, beside its key."""
    return b"%b%b%d %b.personal" % (workspace_id.bytes, stream_id.bytes, version, topic.encode())


def is_sealed(data: bytes) -> bool:
    """Whether the stored event ``data`` has a sealed part. No text in an event can look like one: it is quoted."""
    return data.endswith(b'"}') and _sealed_at(data) >= 0


def _sealed_at(data: bytes) -> int:
    """Where the sealed text begins; -1: there is none."""
    start = data.rfind(_SEALED) + len(_SEALED)
    return start if start >= len(_SEALED) and data.find(b'"', start) == len(data) - 2 else -1


def contact_of(data: bytes) -> UUID:
    """Whose key the sealed part of ``data`` needs."""
    start = data.index(_CONTACT) + len(_CONTACT)
    return UUID(data[start : start + _UUID_LENGTH].decode())


def says_something(topic: str, data: bytes) -> bool:
    """Whether the event ``data``, in clear, says anything personal of a contact."""
    return topic in NOTHING and not data.endswith(_PERSONAL + _nothing(topic) + b"}")


def seal(data: bytes, cipher: Cipher, place: bytes) -> bytes:
    """The event ``data`` with its personal part sealed for ``place``."""
    start = data.index(_PERSONAL) + len(_PERSONAL)
    return b'%b"%b"}' % (data[:start], b64encode(cipher.seal(data[start:-1], place)))


def unseal(data: bytes, cipher: Cipher, place: bytes) -> bytes:
    """The event as it was before it was sealed for ``place``.

    Raises `NotOpenedError` where anything of it was changed, key and place included.
    """
    start = _sealed_at(data)
    text = data[start:-2] if start >= 0 else b""
    try:
        sealed = b64decode(text, validate=True)
    except ValueError:
        sealed = b""
    if not sealed or b64encode(sealed) != text:  # the last character may have bits that say nothing
        raise NotOpenedError("a sealed field was altered")
    return b"%b%b}" % (data[: start - 1], cipher.open(sealed, place))


def blank(topic: str, data: bytes) -> bytes:
    """The sealed event ``data`` as it reads without the key."""
    return b"%b%b}" % (data[: _sealed_at(data) - 1], _nothing(topic))
