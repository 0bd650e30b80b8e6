"""Personal fields as ciphertext: what was sealed opens where it was sealed, and nowhere else."""

import json
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import codec, sealing
from adapters.master_keys import LocalMasterKeys, MasterKeyError, new_master_key
from adapters.sealing import Cipher, NotOpenedError, is_sealed, place_of, says_something, seal, unseal
from domain.events import EVENTS, Event

CONTACT, OTHER = UUID(int=0xC1), UUID(int=0xC2)
KEY, OTHER_KEY = Cipher(bytes(32)), Cipher(b"\1" * 32)
PLACE = (UUID(int=1), UUID(int=0xD1), 7, "note-added.v1")
GOLDEN = json.loads((Path(__file__).parents[1] / "contract" / "golden_events.json").read_text())
TEXTS = st.text(max_size=80) | st.sampled_from(
    ['"personal":"QUJD"}', '","personal":"QUJD', "\\", '\\"personal":"', '"contact_id":"', "}"]
)


def note(text: str) -> bytes:
    cls = EVENTS["note-added.v1"]
    author = {"kind": "agent", "id": "x"}
    event: Event = cls.model_validate(
        {"message_id": OTHER, "author": author, "contact_id": CONTACT, "personal": {"text": text.replace("\0", "")}}
    )
    return codec.encode(event)


@given(TEXTS)
def test_what_was_sealed_opens_again_and_says_nothing_without_the_key(text: str) -> None:
    data = note(text)
    sealed = seal(data, KEY, place_of(*PLACE))
    assert is_sealed(sealed)
    assert not is_sealed(data)
    assert unseal(sealed, KEY, place_of(*PLACE)) == data
    assert sealing.contact_of(sealed) == CONTACT
    assert codec.decode("note-added.v1", sealed) == codec.decode("note-added.v1", note(""))
    assert seal(data, KEY, place_of(*PLACE)) != sealed, "the same text twice must not look the same"


@pytest.mark.parametrize("topic", sorted(topic for topic in GOLDEN if '"personal"' in GOLDEN[topic]))
def test_every_event_ever_stored_is_sealed_and_opened(topic: str) -> None:
    data = GOLDEN[topic].encode()
    assert codec.decode(topic, data) is not None
    if topic not in sealing.NOTHING:
        assert topic == "view-saved.v1", "an event with a personal part of a contact must be sealed"
        return
    sealed = seal(data, KEY, place_of(*PLACE[:3], topic))
    assert unseal(sealed, KEY, place_of(*PLACE[:3], topic)) == data
    blank = codec.decode(topic, sealed)
    assert blank.personal == sealing.NOTHING[topic]
    assert not says_something(topic, codec.encode(blank))
    assert says_something(topic, data)
    assert {*EVENTS[topic].model_fields} - {"personal"} == {*json.loads(codec.encode(blank))} - {"personal"}


@settings(max_examples=300)
@given(st.data())
def test_no_changed_byte_opens(data: st.DataObject) -> None:
    sealed = bytearray(seal(note("Meu pedido não chegou."), KEY, place_of(*PLACE)))
    start = bytes(sealed).rindex(b'"personal":"') + len(b'"personal":"')
    at = data.draw(st.integers(start, len(sealed) - 3))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((NotOpenedError, ValueError)):
        unseal(bytes(sealed), KEY, place_of(*PLACE))


ELSEWHERE = [
    (UUID(int=2), *PLACE[1:]),
    (PLACE[0], UUID(int=0xD2), *PLACE[2:]),
    (*PLACE[:2], 8, PLACE[3]),
    (*PLACE[:3], "message-received.v1"),
]


def opens(seal_at: bytes, open_at: bytes, key: Cipher = KEY) -> bool:
    try:
        unseal(seal(note("segredo"), KEY, seal_at), key, open_at)
    except NotOpenedError:
        return False
    return True


def test_what_was_sealed_opens_at_no_other_place_and_with_no_other_key() -> None:
    assert opens(place_of(*PLACE), place_of(*PLACE))
    assert not any(opens(place_of(*PLACE), place_of(*other)) for other in ELSEWHERE)
    assert not opens(place_of(*PLACE), place_of(*PLACE), OTHER_KEY)


def test_canary_without_its_place_a_text_opens_in_another_conversation() -> None:
    assert all(opens(b"", b"") for _ in ELSEWHERE)


def test_places_are_told_apart_however_their_parts_are_cut() -> None:
    assert len({place_of(*each) for each in [PLACE, *ELSEWHERE]}) == 1 + len(ELSEWHERE)


def test_digests_confirm_a_guess_only_with_the_key() -> None:
    assert KEY.digest(b"a") == Cipher(bytes(32)).digest(b"a")
    assert len({KEY.digest(b"a"), KEY.digest(b"b"), OTHER_KEY.digest(b"a")}) == 3


def test_a_wrapped_key_opens_for_its_contact_and_master_key_only() -> None:
    first, second = new_master_key(), new_master_key()
    old = LocalMasterKeys.parse(first)
    [wrapped] = old.wrap([(CONTACT.bytes, b"k" * 32)])
    assert b"k" * 8 not in wrapped.key
    both = LocalMasterKeys.parse(f"{second}\n{first}\n")
    assert both.unwrap([wrapped]) == [b"k" * 32]
    assert both.current() == LocalMasterKeys.parse(second).current() != old.current() == wrapped.master
    for keys, owner in ((both, OTHER.bytes), (LocalMasterKeys.parse(second), CONTACT.bytes)):
        with pytest.raises(MasterKeyError):
            keys.unwrap([wrapped._replace(owner=owner)])


@pytest.mark.parametrize("text", ["", "short", "QUJD", "A" * 43 + "=,", "QUJD" * 10, "ä" * 44])
def test_what_is_no_master_key_is_refused(text: str) -> None:
    if text.rstrip(",") != text:
        assert LocalMasterKeys.parse(text).current()  # a comma at the end is nothing
        return
    with pytest.raises(MasterKeyError, match="32 bytes in base64"):
        LocalMasterKeys.parse(text)


def test_a_master_key_is_made_once_and_only_this_user_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "data" / "master.key"
    with pytest.raises(MasterKeyError, match="No such file"):
        LocalMasterKeys.read(path, make=False)
    made = LocalMasterKeys.read(path, make=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert LocalMasterKeys.read(path, make=True).current() == made.current()
    assert [each.name for each in path.parent.iterdir()] == ["master.key"]
