"""The history in words: a sentence per event, in Portuguese or English, in somebody's time zone.

Invariant: every event has a sentence in every language; none names a contact. Agents, sectors and tokens have the name
that they have now; of whom the directory does not know, the id stands there.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from gettext import NullTranslations
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from babel.dates import format_date, format_time
from fastapi import Depends, Query, Request
from pydantic import Field

from api.languages import LOCALES, Language, in_zone, language_of, translations
from api.queries import fetch, invalid
from domain import events
from domain.events import ActorKind, FinalizationCause, MessageKind, Presence, Priority, Surface
from domain.permissions import Caller

DEFAULT_ZONE = "America/Sao_Paulo"
Lang = Annotated[
    Literal["pt", "en"] | None, Field(description="of the sentences; else what Accept-Language asks for, or Portuguese")
]
Zone = Annotated[
    str, Field(max_length=64, description="of the times in sentences: a name of IANA's", examples=[DEFAULT_ZONE])
]


def N_(text: str) -> str:  # noqa: N802  # what the catalogues' tools look for
    """Mark ``text`` to be translated where it is said."""
    return text


SENTENCES: Mapping[type[events.Event], str] = {
    events.ConversationOpened: N_("Opened by %(actor)s on the channel %(channel)s"),
    events.ConversationHandedOffToBot: N_("Handed off to the bot %(bot)s by %(actor)s"),
    events.ConversationHandedOffByBot: N_("Handed off by the bot %(bot)s to %(owner)s"),
    events.ConversationMarkedPending: N_("Put back as pending to %(owner)s by %(actor)s"),
    events.ConversationAssumed: N_("Assumed by %(owner)s"),
    events.ConversationTransferred: N_("Transferred from %(source)s to %(target)s by %(actor)s"),
    events.ConversationFinalizedFromInbox: N_("Finalized by %(actor)s"),
    events.ConversationFinalizedFromListing: N_("Finalized by %(actor)s"),
    events.ConversationFinalizedAutomatically: N_("Finalized automatically (%(cause)s) by %(actor)s"),
    events.ConversationReopened: N_("Reopened by %(actor)s for %(owner)s, episode %(episode)s"),
    events.MessageReceived: N_("Message received (%(kind)s) from %(author)s"),
    events.MessageSent: N_("Message sent (%(kind)s) by %(author)s"),
    events.NoteAdded: N_("Note added by %(author)s"),
    events.LabelAdded: N_("Label %(label)s put on by %(actor)s"),
    events.LabelRemoved: N_("Label %(label)s taken off by %(actor)s"),
    events.PriorityChanged: N_("Priority changed from %(before)s to %(after)s by %(actor)s"),
    events.AttributeSet: N_("Attribute %(key)s set by %(actor)s"),
    events.ContactReassigned: N_("Given to another contact by %(actor)s"),
    events.ContactRegistered: N_("Contact registered by %(actor)s"),
    events.ContactDetailsChanged: N_("Contact's details changed by %(actor)s"),
    events.ContactErased: N_("Contact erased by %(actor)s"),
    events.WorkspaceCreated: N_("Workspace %(slug)s created by %(actor)s"),
    events.SectorCreated: N_("Sector %(name)s created by %(actor)s"),
    events.SectorRenamed: N_("Sector %(before)s renamed to %(after)s by %(actor)s"),
    events.SectorDeactivated: N_("Sector %(stream)s deactivated by %(actor)s"),
    events.AgentRegistered: N_("Agent %(name)s registered with the role %(role)s by %(actor)s"),
    events.AgentRoleChanged: N_("Role of the agent %(stream)s changed from %(before)s to %(after)s by %(actor)s"),
    events.AgentJoinedSector: N_("Agent %(stream)s joined %(sector)s, by %(actor)s"),
    events.AgentLeftSector: N_("Agent %(stream)s left %(sector)s, by %(actor)s"),
    events.AgentDeactivated: N_("Agent %(stream)s deactivated by %(actor)s"),
    events.RoleDefined: N_("Role %(name)s defined by %(actor)s"),
    events.TokenIssued: N_("Access token %(name)s issued with the role %(role)s by %(actor)s"),
    events.TokenNarrowed: N_("Access token %(stream)s narrowed by %(actor)s"),
    events.TokenRevoked: N_("Access token %(stream)s revoked by %(actor)s"),
    events.IdentityLinked: N_("Identity linked to the agent %(agent)s by %(actor)s"),
    events.IdentityUnlinked: N_("Identity unlinked from the agent %(agent)s by %(actor)s"),
    events.AttributeDefined: N_("Custom attribute %(key)s defined by %(actor)s"),
    events.AttributeRetired: N_("Custom attribute retired by %(actor)s"),
    events.ViewSaved: N_("View saved by %(actor)s"),
    events.ViewRemoved: N_("View removed by %(actor)s"),
}
_TEMPLATES = {event.TOPIC: text for event, text in SENTENCES.items()}
SURFACES: Mapping[str, str] = {
    Surface.INBOX: N_("from the inbox"),
    Surface.LISTING: N_("from the listing"),
    Surface.BULK: N_("in bulk"),
    Surface.BOT: N_("by the bot's doing"),
    Surface.CHANNEL: N_("through the channel"),
    Surface.AUTOMATION: N_("by automation"),
    Surface.API: N_("through the API"),
    Surface.IMPORT: N_("by import"),
}
_IMPLIED = {
    events.ConversationFinalizedFromInbox.TOPIC: Surface.INBOX,
    events.ConversationFinalizedFromListing.TOPIC: Surface.LISTING,
}
"""From where it was, whatever carried it."""
_CHANGED = {events.PriorityChanged.TOPIC: "priority", events.AgentRoleChanged.TOPIC: "role"}
"""What goes from one word to another."""
WORDS: Mapping[str, str] = {
    f"cause {FinalizationCause.BOT}": N_("the bot"),
    f"cause {FinalizationCause.INACTIVITY}": N_("inactivity"),
    f"cause {FinalizationCause.AUTOMATION}": N_("an automation"),
    f"cause {FinalizationCause.CONTACT}": N_("the contact"),
    f"cause {FinalizationCause.IMPORT}": N_("an import"),
    f"priority {Priority.LOW}": N_("low"),
    f"priority {Priority.NORMAL}": N_("normal"),
    f"priority {Priority.HIGH}": N_("high"),
    f"priority {Priority.URGENT}": N_("urgent"),
    f"kind {MessageKind.TEXT}": N_("text"),
    f"kind {MessageKind.IMAGE}": N_("image"),
    f"kind {MessageKind.AUDIO}": N_("audio"),
    f"kind {MessageKind.VIDEO}": N_("video"),
    f"kind {MessageKind.DOCUMENT}": N_("document"),
    f"kind {MessageKind.LOCATION}": N_("location"),
    f"kind {MessageKind.CONTACT_CARD}": N_("contact card"),
    f"kind {MessageKind.TEMPLATE}": N_("template"),
    f"kind {MessageKind.OTHER}": N_("other"),
    "role agent": N_("agent"),
    "role supervisor": N_("supervisor"),
    "role auditor": N_("auditor"),
    "role admin": N_("administrator"),
    "role integration": N_("integration"),
    f"presence {Presence.ONLINE}": N_("online"),
    f"presence {Presence.AWAY}": N_("away"),
    f"presence {Presence.OFFLINE}": N_("offline"),
}
"""What the words of events are called, by field and word; of roles, those that are built in."""
CHANNELS: Mapping[str, str] = {
    "whatsapp": "WhatsApp",
    "webchat": N_("Web chat"),
    "phone": N_("Phone"),
    "email": N_("E-mail"),
    "instagram": "Instagram",
    "messenger": "Messenger",
    "telegram": "Telegram",
    "api": "API",
}
"""The channels that have a name; others are called as they are."""
ACTORS: Mapping[str, str] = {
    ActorKind.AGENT: "%(name)s",
    ActorKind.BOT: N_("the bot %(name)s"),
    ActorKind.CONTACT: N_("the contact"),
    ActorKind.SYSTEM: N_("the system"),
    ActorKind.INTEGRATION: N_("the integration %(name)s"),
}
PHRASES = (
    *(N_("the queue"), N_("the queue of %(sector)s"), N_("%(agent)s (%(sector)s)")),
    *(N_("%(target)s, who was %(presence)s"), N_("reason: %(reason)s"), N_("outcome: %(outcome)s")),
    N_("on %(date)s at %(time)s"),
)

Names = Mapping[str, str]
"""What agents, sectors and tokens are called, by id."""


@dataclass(frozen=True, slots=True)
class Speech:
    """In which language, and by which clock, it is told."""

    language: Language
    zone: tzinfo

    @property
    def texts(self) -> NullTranslations:
        """The language's."""
        return translations(self.language)

    def when(self, moment: datetime) -> str:
        """Date and time of day."""
        local, locale = in_zone(moment, self.zone), LOCALES[self.language]
        said = {"date": format_date(local, "short", locale), "time": format_time(local, "short", locale=locale)}
        return self.texts.gettext("on %(date)s at %(time)s") % said


def speech_of(request: Request, lang: Language | None, zone: str) -> Speech:
    """How to speak to whoever asks.

    Raises `RequestValidationError` for a time zone that there is not.
    """
    try:
        found = ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        raise invalid("tz", f"is no time zone of IANA's, such as {DEFAULT_ZONE}") from None
    return Speech(lang or language_of(request.headers.get("accept-language")), found)


def _asked_for(
    request: Request, lang: Annotated[Lang, Query()] = None, tz: Annotated[Zone, Query()] = DEFAULT_ZONE
) -> Speech:
    return speech_of(request, lang, tz)


Speaking = Annotated[Speech, Depends(_asked_for)]
"""For a route whose parameters are no model of their own."""

_NAMES = """
select id::text, name from agents where workspace_id = %s and (%s or id::text = any(%s))
union all select id::text, name from sectors where workspace_id = %s and (%s or id::text = any(%s))
union all select id::text, name from tokens where workspace_id = %s and (%s or id::text = any(%s))"""


async def names_for(request: Request, caller: Caller, rows: Iterable[Mapping[str, Any]] | None) -> Names:
    """What those are called whom ``rows`` of the history are about; None: everybody."""
    ids = sorted({each for row in rows or () for each in _ids_in(row)})
    asked = [caller.workspace_id, rows is None, ids] * 3
    return {row["id"]: row["name"] for row in await fetch(request, caller, _NAMES, asked)}


def _ids_in(row: Mapping[str, Any]) -> Iterable[str]:
    yield str(row["stream_id"])
    yield row["actor_id"]
    details = row["details"]
    for place in (details, *_parts(details).values()):
        yield from (place[name] for name in ("agent_id", "sector_id", "id") if isinstance(place.get(name), str))


def _parts(details: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Owners and actors that the event names, by field."""
    return {name: details[name] for name in ("source", "target", "author") if isinstance(details.get(name), dict)}


def sentence(row: Mapping[str, Any], names: Names, speech: Speech) -> str:
    """What happened, by whom, from where and when."""
    say, details = speech.texts.gettext, row["details"]
    said: dict[str, Any] = {key: str(value) for key, value in details.items() if isinstance(value, str | int)}
    said |= {key: _word(key, said[key], say) for key in ("cause", "kind", "role") if key in said}
    if (channel := said.get("channel", "")) in CHANNELS:
        said["channel"] = say(CHANNELS[channel])
    if (of := _CHANGED.get(row["topic"])) is not None:
        said |= {key: _word(of, said[key], say) for key in ("before", "after")}
    said["stream"] = _name(str(row["stream_id"]), names)
    said["actor"] = _actor(row["actor_kind"], row["actor_id"], names, say)
    parts = _parts(details)
    author = parts.pop("author", None)
    owners = {"owner": details | {"bot": None}, **parts}
    said |= {key: _owner(owner, names, say) for key, owner in owners.items()}
    said |= {key: _name(said[f"{key}_id"], names) for key in ("agent", "sector") if f"{key}_id" in said}
    if author:
        said["author"] = _actor(author["kind"], author["id"], names, say)
    if presence := details.get("target_presence"):
        there = {"target": said["target"], "presence": say(WORDS[f"presence {presence}"])}
        said["target"] = say("%(target)s, who was %(presence)s") % there
    clauses = [say(_TEMPLATES[row["topic"]]) % said]
    implied = _IMPLIED.get(row["topic"])
    clauses += [say(SURFACES[surface]) for surface in dict.fromkeys((implied, Surface(row["surface"]))) if surface]
    clauses.append(speech.when(row["occurred_at"]))
    clauses += [say(f"{key}: %({key})s") % said for key in ("outcome", "reason") if said.get(key)]
    return ", ".join(clauses)


def _name(id_: str, names: Names) -> str:
    return names.get(id_, id_)


def _word(of: str, word: str, say: Callable[[str], str]) -> str:
    """What ``word`` is called; a role of the workspace's own as it is."""
    return say(WORDS[f"{of} {word}"]) if f"{of} {word}" in WORDS else word


def _actor(kind: str, id_: str, names: Names, say: Callable[[str], str]) -> str:
    return say(ACTORS[kind]) % {"name": _name(id_, names)}


def _owner(owner: Mapping[str, Any], names: Names, say: Callable[[str], str]) -> str:
    """Whom a conversation is with: a bot, an agent in a sector or in none, or a queue."""
    sector = _name(owner["sector_id"], names) if owner.get("sector_id") else None
    if owner.get("agent_id"):
        agent = _name(owner["agent_id"], names)
        return say("%(agent)s (%(sector)s)") % {"agent": agent, "sector": sector} if sector else agent
    if owner.get("bot"):
        return say("the bot %(name)s") % {"name": owner["bot"]}
    return say("the queue of %(sector)s") % {"sector": sector} if sector else say("the queue")
