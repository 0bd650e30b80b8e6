"""What a form was given, and what was wrong with it, beside its fields.

Invariant: what somebody typed is shown to them again, whatever was wrong.
"""

from collections.abc import Mapping
from typing import Any

from api.pages.asking import RefusedError
from api.pages.directory_names import names as names_of
from api.pages.page import Page, refusal
from api.pages.texts import COME_AGAIN, N_, STATUSES, WHAT_WENT_WRONG
from api.pages.words import EVENT_NAMES, actor_name

MISTAKES = {
    "string_too_long": N_("This is too long."),
    "string_too_short": N_("This must not be empty."),
    "string_pattern_mismatch": N_("This is not of the form that is needed here."),
    "missing": N_("This must be given."),
    "too_long": N_("These are too many."),
    "uuid_parsing": N_("Choose one that is in the list."),
    "enum": N_("Choose one that is in the list."),
}
MOST_TOLD = 5
_MEANWHILE = N_(
    "Somebody changed it while you looked: %(what)s. Nothing was done yet; if you still mean it, send it again."
)
NOT_FITTING = N_("This does not fit.")
_COME_AGAIN = N_("This is not available for the moment; send it again in a few seconds.")


def typed(page: Page, *names: str) -> dict[str, str]:
    """The fields of the form that was sent, with every end of a line as one character."""
    return {name: str(page.form.get(name, "")).replace("\r\n", "\n").strip() for name in names}


async def mistakes_of(page: Page, error: RefusedError, fields: Mapping[str, str], about: str = "") -> dict[str, str]:
    """What is wrong, by field of the form, whose names ``fields`` holds by the API's; under "" what belongs to none.

    ``about`` is what the form was about, where the page shows several things. Raises ``error`` again where nobody is
    signed in any more.
    """
    if error.status == 401:
        raise error
    if error.problem.get("since"):
        return {"": await _meanwhile(page, error.problem["since"], about)}
    found: dict[str, str] = {}
    for each in error.problem.get("errors") or ():
        field = next((fields[part] for part in each["in"] if part in fields), "")
        found.setdefault(field, page.text(MISTAKES.get(each["what"], NOT_FITTING)))
    return found or {"": said(page, error)}


async def _meanwhile(page: Page, since: list[dict[str, Any]], about: str) -> str:
    """What happened between what somebody saw and what they wanted to do to it."""
    names = await names_of(page)
    told = []
    for each in since[-MOST_TOLD:]:
        event, actor, at = EVENT_NAMES[each["topic"]], each["actor"], each["recorded_at"]
        what = page.text("%(what)s: “%(name)s”", what=page.text(event), name=about) if about else page.text(event)
        told.append(f"{what} ({actor_name(page, names, actor)}, {page.formats.moment(at)})")
    if len(since) > MOST_TOLD:
        told.insert(0, "…")
    return page.text(_MEANWHILE, what="; ".join(told))


def said(page: Page, error: RefusedError) -> str:
    """Why the API refused, in words."""
    if error.code in COME_AGAIN:
        return page.text(_COME_AGAIN)
    return refusal(page, error.code) or page.text(STATUSES.get(error.status, WHAT_WENT_WRONG))


def none_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without what is empty: absent for the API."""
    return {name: value for name, value in values.items() if value not in {"", None}}
