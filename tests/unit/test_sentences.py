"""Every event is told in every language, by whoever did it, without naming a contact."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from adapters.codec import decode
from api import sentences
from api.languages import LANGUAGES, Language, translations
from api.sentences import ACTORS, CHANNELS, PHRASES, SENTENCES, SURFACES, WORDS, Speech, sentence
from domain.events import EVENTS, UNPUBLISHED, ActorKind, FinalizationCause, MessageKind, Presence, Priority, Surface
from domain.permissions import BUILT_IN_ROLES

GOLDEN = json.loads((Path(__file__).parents[1] / "contract" / "golden_events.json").read_text())
AGENT, SECTOR = UUID(int=0xA), UUID(int=0x5)
NAMES = {str(AGENT): "Davi Rocha", str(SECTOR): "Vendas"}
AT = datetime(2026, 11, 22, 17, 3, 59, tzinfo=UTC)


def row(topic: str, details: dict[str, Any], kind: str = "agent", id_: str = str(AGENT), **more: Any) -> dict[str, Any]:
    found = {"topic": topic, "details": details, "actor_kind": kind, "actor_id": id_, "surface": "listing"}
    return found | {"stream_id": SECTOR, "occurred_at": AT} | more


def say(language: Language, told: dict[str, Any], zone: str = "America/Sao_Paulo") -> str:
    return sentence(told, NAMES, Speech(language, ZoneInfo(zone)))


def test_who_finalized_it_from_where_and_when() -> None:
    told = row("conversation-finalized-from-listing.v1", {"outcome": "resolvida", "contact_id": str(UUID(int=1))})
    assert say("pt", told) == "Finalizada por Davi Rocha, pela listagem, em 22/11/2026 às 14:03, resultado: resolvida"
    assert re.sub(r"\s", " ", say("en", told, "UTC")) == (
        "Finalized by Davi Rocha, from the listing, on 11/22/26 at 5:03 PM, outcome: resolvida"
    )
    assert ", pela listagem, em massa, " in say("pt", told | {"surface": "bulk"})


def test_a_transfer_says_from_whom_to_whom_and_whether_they_were_there() -> None:
    details = {
        "source": {"sector_id": None, "agent_id": None, "bot": "triagem"},
        "target": {"sector_id": str(SECTOR), "agent_id": str(AGENT), "bot": None},
        "reason": "troca",
        "target_presence": "offline",
    }
    assert say("pt", row("conversation-transferred.v1", details, "system", "x")) == (
        "Transferida de chatbot triagem para Davi Rocha (Vendas) (estava offline) por sistema, pela listagem,"
        " em 22/11/2026 às 14:03, motivo: troca"
    )


def test_a_channel_is_called_as_in_the_listing_and_one_without_a_name_as_it_is() -> None:
    for channel, said in {"phone": "Telefone", "whatsapp": "WhatsApp", "text": "text"}.items():
        told = row("conversation-opened.v1", {"channel": channel}, "system", "x")
        assert say("pt", told).startswith(f"Aberta por sistema no canal {said}, ")


def test_a_role_is_called_by_its_name_and_one_of_the_workspaces_own_as_it_is() -> None:
    registered = row("agent-registered.v1", {"name": "Bia", "role": "admin"}, "system", "x")
    assert say("pt", registered).startswith("Atendente Bia cadastrado com o papel administrador por sistema, ")
    assert say("en", registered).startswith("Agent Bia registered with the role administrator by the system, ")
    changed = row("agent-role-changed.v1", {"before": "agent", "after": "night-shift"}, "system", "x")
    assert "de atendente para night-shift por sistema" in say("pt", changed)
    issued = row("token-issued.v1", {"name": "t", "role": "integration"}, "system", "x")
    assert "com o papel integração por sistema" in say("pt", issued)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ActorKind)
def test_every_event_ever_shipped_has_a_sentence_that_names_no_contact(language: Language, kind: ActorKind) -> None:
    assert set(GOLDEN) == set(EVENTS)
    for topic, data in GOLDEN.items():
        event = decode(topic, data.encode())
        details = event.model_dump(mode="json", exclude=UNPUBLISHED)
        for surface in Surface:
            told = say(language, row(topic, details, kind, "c0ffee-contact", surface=surface))
            assert told
            assert "%(" not in told
            assert kind is not ActorKind.CONTACT or "c0ffee" not in told


def test_every_event_and_word_is_there_and_translated() -> None:
    assert {event.TOPIC for event in SENTENCES} == set(EVENTS)
    assert set(SURFACES) == set(Surface)
    assert set(ACTORS) == set(ActorKind)
    fields = {"cause": FinalizationCause, "kind": MessageKind, "priority": Priority, "presence": Presence}
    words_of = {**fields, "role": BUILT_IN_ROLES}
    assert set(WORDS) == {f"{name} {word}" for name, words in words_of.items() for word in words}
    portuguese: Any = translations("pt")
    texts = {
        *SENTENCES.values(),
        *SURFACES.values(),
        *ACTORS.values(),
        *WORDS.values(),
        *CHANNELS.values(),
        *PHRASES,
    } - {"%(name)s"}
    assert sorted(texts - portuguese._catalog.keys()) == []


def test_a_translation_says_all_that_the_text_says() -> None:
    catalogue: Any = translations("pt")
    texts = {*SENTENCES.values(), *SURFACES.values(), *ACTORS.values(), *PHRASES}
    for text in texts:
        assert set(re.findall(r"%\((\w+)\)s", text)) == set(re.findall(r"%\((\w+)\)s", catalogue.gettext(text))), text


def test_no_translation_is_left_over() -> None:
    path = Path(sentences.__file__).parent / "translations" / "pt" / "LC_MESSAGES" / "history.po"
    there = {line.removeprefix('msgid "')[:-1] for line in path.read_text().splitlines() if line.startswith('msgid "')}
    texts = {*SENTENCES.values(), *SURFACES.values(), *ACTORS.values(), *WORDS.values(), *CHANNELS.values(), *PHRASES}
    assert there - texts == {""}
