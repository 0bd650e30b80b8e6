"""What a caller may see of conversations, as conditions on their rows and in a row."""

from collections.abc import Mapping
from typing import Any

from domain.events import Owner, Priority
from domain.permissions import Caller, Permission, Scope, may
from projections.sql import NOTHING, Sql, all_of


def visible(caller: Caller, permission: Permission = Permission.VIEW) -> list[Sql]:
    """What ``caller`` may see at all: the rule of `domain.permissions.may`, as SQL; the workspace first."""
    conditions: list[Sql] = [("workspace_id = %s", [caller.workspace_id])]
    own = [caller.agent_id, caller.bot]
    match caller.scope(permission):
        case Scope.ALL:
            pass
        case Scope.SECTOR:
            conditions.append(
                ("(sector_id = any(%s::uuid[]) or agent_id = %s::uuid or bot = %s::text)", [list(caller.sectors), *own])
            )
        case Scope.OWN:
            conditions.append(("(agent_id = %s::uuid or bot = %s::text)", own))
        case None:
            conditions.append(NOTHING)
    return conditions


def within_reach(caller: Caller, column: str, *permissions: Permission) -> list[Sql]:
    """That ``column`` is a conversation which all of ``permissions`` reach; nothing where they reach everything."""
    limited = [permission for permission in permissions if caller.scope(permission) is not Scope.ALL]
    if not limited:
        return []
    theirs, values = all_of([condition for permission in limited for condition in visible(caller, permission)])
    return [(f"{column} in (select id from listing where {theirs})", values)]


_HIDDEN = {
    *("workspace_id", "recorded_at", "sort_value", "waited", "waiting_from", "words", "inherited", "sees_contact"),
}


def shown(row: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """A row as ``caller`` sees it: the contact's details only with the permission for them."""
    view = {key: value for key, value in row.items() if key not in _HIDDEN}
    view["priority"] = list(Priority)[row["priority"]].value
    sees_contact = row.get("sees_contact")
    if sees_contact is None:
        sees_contact = may(caller, Permission.VIEW_CONTACT, owner_of(row))
    if not sees_contact:
        view |= {"contact_name": None, "contact_phones": [], "contact_emails": [], "contact_attributes": {}}
    return view


def owner_of(row: Mapping[str, Any]) -> Owner:
    """Who answers for the conversation of ``row``."""
    return Owner(sector_id=row["sector_id"], agent_id=row["agent_id"], bot=row["bot"])
