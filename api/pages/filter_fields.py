"""The fields and operators of filters as people name them, and how values are typed.

Invariant: every field and operator of the API's grammar has a name here.
"""

from collections.abc import Mapping

from api.pages.columns import PRIORITY_NAMES, STATUS_NAMES, SURFACE_NAMES
from api.pages.texts import N_
from projections.filters import CHOICES, FIELDS, OPERATORS, Kind, Operator

GROUPS: Mapping[str, Mapping[str, str]] = {
    N_("Conversation"): {
        "status": N_("Status"),
        "channel": N_("Channel"),
        "sector": N_("Sector"),
        "agent": N_("Agent"),
        "bot": N_("Bot"),
        "label": N_("Label"),
        "priority": N_("Priority"),
        "protocol": N_("Protocol"),
        "subject": N_("Subject"),
        "text": N_("Search"),
    },
    N_("Contact"): {
        "contact.name": N_("Contact's name"),
        "contact.phone": N_("Contact's phone"),
        "contact.email": N_("Contact's e-mail"),
        "contact": N_("Contact's id"),
    },
    N_("Times"): {
        "opened": N_("Opened"),
        "last_activity": N_("Last activity"),
        "finalized": N_("Finalized"),
        "waiting_since": N_("Waiting since"),
        "unanswered_since": N_("Unanswered since"),
        "waiting_seconds": N_("Waiting time"),
        "first_response_seconds": N_("First response"),
        "resolution_seconds": N_("Resolution"),
    },
    N_("How it went"): {
        "finalized_from": N_("Finalized from"),
        "finalized_by": N_("Finalized by"),
        "finalized_cause": N_("Why it was finalized automatically"),
        "outcome": N_("Outcome"),
        "opened_by": N_("Opened by"),
        "participants": N_("Took part"),
        "ever_in_sector": N_("Was ever in sector"),
        "ever_with_agent": N_("Was ever with agent"),
        "ever_with_bot": N_("Was ever with bot"),
        "unanswered": N_("Unanswered"),
        "unread": N_("Unread"),
        "episode": N_("Episode"),
        "transfers": N_("Transfers"),
        "reopenings": N_("Reopenings"),
        "messages": N_("Messages"),
        "messages_received": N_("Messages received"),
        "messages_sent": N_("Messages sent"),
        "notes": N_("Notes"),
    },
    N_("Attributes"): {
        "attributes.": N_("Attribute of the conversation…"),
        "contact.attributes.": N_("Attribute of the contact…"),
    },
}
OPERATOR_NAMES: Mapping[Operator, str] = {
    Operator.IS: N_("is"),
    Operator.IS_NOT: N_("is not"),
    Operator.IN: N_("is one of"),
    Operator.NOT_IN: N_("is none of"),
    Operator.CONTAINS: N_("contains"),
    Operator.NOT_CONTAINS: N_("does not contain"),
    Operator.STARTS_WITH: N_("starts with"),
    Operator.IS_SET: N_("is filled in"),
    Operator.IS_NOT_SET: N_("is not filled in"),
    Operator.BEFORE: N_("before"),
    Operator.AFTER: N_("from, onwards"),
    Operator.BETWEEN: N_("between"),
    Operator.IN_LAST_DAYS: N_("in the last … days"),
    Operator.MORE_THAN_DAYS_AGO: N_("more than … days ago"),
    Operator.GREATER: N_("more than"),
    Operator.LESS: N_("less than"),
}
CHOICE_NAMES: Mapping[str, Mapping[str, str]] = {
    "status": STATUS_NAMES,
    "priority": PRIORITY_NAMES,
    "finalized_from": SURFACE_NAMES,
    "finalized_cause": {
        "bot": N_("by a bot"),
        "inactivity": N_("for inactivity"),
        "automation": N_("by an automation"),
        "contact": N_("by the contact"),
        "import": N_("by an import"),
    },
}
PEOPLE = {"sector": "sector", "ever_in_sector": "sector", "agent": "agent", "ever_with_agent": "agent"}
"""Fields whose ids are those of sectors or agents."""
IN_USE = {"label": "labels", "bot": "bots", "ever_with_bot": "bots"}
"""Fields for which what exists is suggested."""
VALUELESS = {Operator.IS_SET, Operator.IS_NOT_SET}
SEVERAL = {Operator.IN, Operator.NOT_IN}
DAYS = {Operator.IN_LAST_DAYS, Operator.MORE_THAN_DAYS_AGO}

assert {name for fields in GROUPS.values() for name in fields if not name.endswith("attributes.")} == set(FIELDS)
assert set(OPERATOR_NAMES) == set(Operator)
assert {name: tuple(names) for name, names in CHOICE_NAMES.items()} == dict(CHOICES)


def kind_of_base(field: str) -> Kind:
    """What a field holds; attributes are told apart by their key, which is typed beside."""
    return FIELDS.get(field, Kind.ATTRIBUTE)


def operators_of(field: str) -> dict[str, str]:
    """The operators that a field takes, with their names."""
    return {operator.value: OPERATOR_NAMES[operator] for operator in OPERATORS[kind_of_base(field)]}


def input_of(field: str, operator: str) -> str:
    """With what a value is typed: none, choice, choices, moment, date, days, number, minutes, flag, text or texts."""
    kind = kind_of_base(field)
    if operator in VALUELESS:
        return "none"
    if operator in DAYS:
        return "days"
    several = operator in SEVERAL
    if field in CHOICE_NAMES or field in PEOPLE:
        return "choices" if several else "choice"
    match kind:
        case Kind.TIME:
            return "moment"
        case Kind.COUNT:
            return "numbers" if several else "number"
        case Kind.DURATION:
            return "numbers" if several else "minutes"
        case Kind.FLAG:
            return "flag"
        case _:
            return "texts" if several else "text"
