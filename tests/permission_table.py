"""Who may do what, as `domain.md` says it: the table that the tests of permissions walk, in the domain and over HTTP.

Written from the specification, never from `domain/permissions.py` or the aggregates' rules; it imports nothing of ours.

Invariant: `expected` is total: every caller, action, place, status has one answer, a status of HTTP and a code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

PERMISSIONS = (
    *("view", "reply", "assume", "transfer", "finalize-from-inbox", "finalize-from-listing", "reopen", "label"),
    *("export", "view-contact", "edit-contact", "erase-contact", "read-history", "verify-history"),
    *("manage-directory", "manage-tokens"),
)
_SERVING = ("view", "reply", "assume", "transfer", "finalize-from-inbox", "reopen", "label")
_SERVED = (*_SERVING, "view-contact", "edit-contact")


def _all(scope: str, *permissions: str) -> dict[str, str]:
    return dict.fromkeys(permissions, scope)


BUILT_IN: dict[str, dict[str, str]] = {
    "agent": _all("sector", *_SERVED),
    "supervisor": _all("all", *_SERVED, "finalize-from-listing", "export", "read-history"),
    "auditor": _all("all", "view", "view-contact", "export", "read-history", "verify-history"),
    "admin": _all("all", *PERMISSIONS),
    "integration": _all("all", *_SERVED),
}
OWN_ROLES: dict[str, dict[str, str]] = {
    "everything-own": _all("own", *PERMISSIONS),
    "everything-in-sector": _all("sector", *PERMISSIONS),
    "everything": _all("all", *PERMISSIONS),
    "sees-all-acts-on-own": _all("own", *PERMISSIONS) | {"view": "all"},
    "sees-all-acts-in-sector": _all("sector", *PERMISSIONS) | {"view": "all"},
    "sees-sector-acts-on-all": _all("all", *PERMISSIONS) | {"view": "sector"},
    "only-sees": {"view": "all"},
    "sees-nothing": _all("all", *(name for name in PERMISSIONS if name != "view")),
    "nothing": {},
}
ROLES = BUILT_IN | OWN_ROLES

Kind = Literal["agent", "bot", "integration"]


@dataclass(frozen=True)
class Who:
    """A caller: an agent serves in the sector `support` and in no other."""

    kind: Kind
    role: str

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.role}"


CALLERS = (
    *(Who("agent", role) for role in ROLES if role != "integration"),
    *(Who("integration", role) for role in ("integration", "everything-own", "everything-in-sector")),
    *(Who("bot", role) for role in ("integration", "everything-own")),
)

Sector = Literal["support", "sales"] | None
Holder = Literal["queue", "caller", "colleague", "bot"]


@dataclass(frozen=True)
class Place:
    """Where a conversation is: in which sector, and who holds it."""

    sector: Sector
    holder: Holder

    @property
    def name(self) -> str:
        return f"{self.holder} in {self.sector or 'no sector'}"


SECTORS: tuple[Sector, ...] = ("support", "sales", None)
HOLDERS: tuple[Holder, ...] = ("queue", "caller", "colleague", "bot")
PLACES = tuple(Place(sector, holder) for sector in SECTORS for holder in HOLDERS)


def statuses(place: Place, who: Who) -> tuple[str, ...]:
    """The statuses that a conversation may have there; an integration holds none."""
    if place.holder == "caller":
        return {"agent": ("in_progress", "finalized"), "bot": ("with_bot", "finalized"), "integration": ()}[who.kind]
    return {"queue": "pending", "colleague": "in_progress", "bot": "with_bot"}[place.holder], "finalized"


def reaches(scope: str | None, who: Who, place: Place) -> bool:
    """Own: what one holds; sector: that, and all of the sectors one serves in."""
    own = place.holder == "caller"
    in_sector = who.kind == "agent" and place.sector == "support"
    return scope == "all" or (scope == "sector" and (own or in_sector)) or (scope == "own" and own)


@dataclass(frozen=True, eq=False)
class Action:
    """A command on a conversation: its permission, and the codes of the rules that refuse it, by status."""

    name: str
    permission: str
    refused: dict[str, str]
    method: str
    path: str
    body: dict[str, Any] | None


_ENDED = {"finalized": "conversation-already-finalized"}


def _post(name: str, permission: str, path: str, body: dict[str, Any], refused: dict[str, str] | None = None) -> Action:
    return Action(name, permission, refused or {}, "POST", path, body)


ACTIONS = (
    _post(
        *("hand off to a bot", "transfer", "handoff-to-bot", {"bot": "another-bot"}),
        _ENDED | {"with_bot": "conversation-with-bot"},
    ),
    _post(
        *("hand off from the bot", "transfer", "handoff-from-bot", {}),
        _ENDED | {"in_progress": "conversation-not-with-bot"},
    ),
    _post("put back", "transfer", "pending", {}, _ENDED | {"with_bot": "conversation-with-bot"}),
    _post(
        *("assume", "assume", "assume", {"agent_id": "TAKER"}),
        _ENDED | {"in_progress": "conversation-already-assumed"},
    ),
    _post("transfer", "transfer", "transfer", {"sector_id": "SALES"}, _ENDED),
    _post("finalize from the inbox", "finalize-from-inbox", "finalize", {"surface": "inbox"}),
    _post("finalize from the listing", "finalize-from-listing", "finalize", {"surface": "listing"}),
    _post(
        "finalize automatically", "finalize-from-inbox", "finalize", {"surface": "automation", "cause": "inactivity"}
    ),
    _post("reopen", "reopen", "reopen", {}),
    _post("record a message received", "reply", "messages", {"direction": "received", "text": "x"}),
    _post("send a message", "reply", "messages", {"direction": "sent", "text": "x"}),
    _post("note", "reply", "notes", {"text": "x"}),
    _post("label", "label", "labels", {"label": "vip"}),
    Action("take a label off", "label", {}, "DELETE", "labels/vip", None),
    _post("change the priority", "label", "priority", {"priority": "high"}),
    _post("set an attribute", "label", "attributes", {"key": "order", "value": "4711"}),
    _post("reassign the contact", "edit-contact", "contact", {"contact_id": "OTHER_CONTACT"}),
)
QUERIES = (("", "view"), ("/messages", "view"), ("/episodes", "view"), ("/history", "read-history"))
"""What is read of a conversation, by the end of its path."""

Answer = tuple[int, str]


def expected(who: Who, action: Action, place: Place, status: str) -> Answer:
    """What the table says: out of sight 404, not granted here 403, refused by a rule 409, else 200."""
    seen = may(who, action.permission, place)
    if seen is not None:
        return seen
    if action.name == "finalize automatically" and who.kind == "agent":
        return 403, "permission-denied"
    if action.name == "record a message received" and who.kind != "integration":
        return 403, "permission-denied"
    if action.name == "send a message" and who.kind == "bot" and (place.holder, status) != ("caller", "with_bot"):
        return 409, "bot-not-in-charge"
    taken_by_taker = place.holder == ("caller" if who.kind == "agent" else "colleague")
    if action.name == "assume" and taken_by_taker and status == "in_progress":
        return 200, ""  # it is already so
    code = action.refused.get(status)
    return (409, code) if code else (200, "")


def may(who: Who, permission: str, place: Place) -> Answer | None:
    """The refusal of one who does not see it, or sees it and was not granted ``permission`` there; None: go on."""
    grants = ROLES[who.role]
    if not reaches(grants.get("view"), who, place):
        return 404, "conversation-not-found"
    if not reaches(grants.get(permission), who, place):
        return 403, "permission-denied"
    return None


def expected_of_query(who: Who, permission: str, place: Place) -> Answer:
    """The same for what is read: without the permission in any scope, 403 says nothing of the conversation."""
    if permission not in ROLES[who.role]:
        return 403, "permission-denied"
    return may(who, permission, place) or (200, "")


def expected_of_opening(who: Who, sector: Sector, holder: Holder) -> Answer:
    """A conversation is opened where one may reply; an agent has it at once only for themself."""
    if not reaches(ROLES[who.role].get("reply"), who, Place(sector, holder)):
        return 403, "permission-denied"
    if who.kind == "agent" and holder == "colleague":
        return 403, "permission-denied"
    return 201, ""


def cells() -> Iterator[tuple[Who, Action, Place, str]]:
    """Every caller, action, place, status that there can be."""
    for who in CALLERS:
        for place in PLACES:
            for status in statuses(place, who):
                for action in ACTIONS:
                    yield who, action, place, status
