"""What a form was given, and what was wrong with it, beside its fields.

Invariant: what somebody typed is shown to them again, whatever was wrong.
"""

from collections.abc import Mapping
from typing import Any

from api.pages.asking import RefusedError
from api.pages.page import Page, refusal
from api.pages.texts import N_, STATUSES, WHAT_WENT_WRONG

MISTAKES = {
    "string_too_long": N_("This is too long."),
    "string_too_short": N_("This must not be empty."),
    "string_pattern_mismatch": N_("This is not of the form that is needed here."),
    "missing": N_("This must be given."),
    "too_long": N_("These are too many."),
    "uuid_parsing": N_("Choose one that is in the list."),
}
NOT_FITTING = N_("This does not fit.")


def typed(page: Page, *names: str) -> dict[str, str]:
    """The fields of the form that was sent, with every end of a line as one character."""
    return {name: str(page.form.get(name, "")).replace("\r\n", "\n").strip() for name in names}


def mistakes_of(page: Page, error: RefusedError, fields: Mapping[str, str]) -> dict[str, str]:
    """What is wrong, by field of the form, whose names ``fields`` holds by the API's; under "" what belongs to none.

    Raises ``error`` again where nobody is signed in any more.
    """
    if error.status == 401:
        raise error
    found: dict[str, str] = {}
    for each in error.problem.get("errors") or ():
        field = next((fields[part] for part in each["in"] if part in fields), "")
        found.setdefault(field, page.text(MISTAKES.get(each["what"], NOT_FITTING)))
    return found or {"": said(page, error)}


def said(page: Page, error: RefusedError) -> str:
    """Why the API refused, in words."""
    return refusal(page, error.code) or page.text(STATUSES.get(error.status, WHAT_WENT_WRONG))


def none_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without what is empty: absent for the API."""
    return {name: value for name, value in values.items() if value not in {"", None}}
