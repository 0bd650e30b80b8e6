"""Contacts: finding one, what is known of them, changing it, and everything that happened with them.

Invariant: a change is of what the form showed: whoever else changed it meanwhile is not overwritten.
"""

import asyncio
from math import isfinite
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import Query
from starlette.responses import Response

from api.pages.asking import RefusedError
from api.pages.conversation import WORDS, AtLeast, Cursor, speech
from api.pages.directory_names import names as names_of
from api.pages.forms import mistakes_of, none_of, typed
from api.pages.page import Here, Page, link, page_router
from api.pages.texts import N_
from domain.permissions import Permission

router = page_router()
_EMPTY_ROWS = 2
_NOT_A_NUMBER = N_("This must be a number.")
_NOT_A_DATE = N_("A date, such as 2026-12-31.")
_WITHOUT_KEY = N_("Give this attribute a name.")
_PHONES = N_("Each line is a phone number: digits, blanks, ( ) . - and a + at its beginning.")
_EMAILS = N_("Each line is an e-mail address, such as ana@example.com.")
_KEYS = N_("A name has small letters, digits, and . _ - between them, such as plano.")


@router.get("/contacts")
async def contacts(
    page: Here, q: Annotated[str, Query(max_length=20_000)] = "", cursor: Cursor = None, at_least: AtLeast = None
) -> Response:
    """Find contacts."""
    found: dict[str, Any] = {"items": [], "next": None}
    mistakes: dict[str, str] = {}
    try:
        found = await page.get("/v1/contacts", none_of({"q": q, "cursor": cursor, "at_least": at_least, "limit": 50}))
    except RefusedError as error:
        if error.status != 422:
            raise
        mistakes = await mistakes_of(page, error, {"q": "q"})
    following = link("/contacts", none_of({"q": q, "cursor": found["next"]})) if found["next"] else None
    return page.render(
        "contacts.html",
        422 if mistakes else 200,
        q=q,
        items=found["items"],
        following=following,
        first=cursor is None,
        mistakes=mistakes,
    )


@router.get("/contacts/{id:uuid}")
async def contact(page: Here, id: UUID, cursor: Cursor = None, at_least: AtLeast = None) -> Response:
    """One contact, and what happened with them."""
    path = f"/v1/contacts/{id}"
    row = await page.get(path, none_of({"at_least": at_least}))
    names, timeline, defined = await asyncio.gather(
        names_of(page),
        page.get(f"{path}/timeline", none_of({"cursor": cursor, "limit": 100, "at_least": at_least} | speech(page))),
        _definitions(page),
    )
    return page.render(
        "contact.html",
        id=id,
        row=row,
        names=names,
        items=timeline["items"],
        following=link(page.request.url.path, {"cursor": timeline["next"]}) if timeline["next"] else None,
        labels={each["key"]: each["label"] for each in defined},
        may_edit=page.may(Permission.EDIT_CONTACT) and not row["erased"],
        may_erase=page.may(Permission.ERASE_CONTACT) and not row["erased"],
        **WORDS,
    )


async def _definitions(page: Page) -> list[dict[str, Any]]:
    """The attributes of contacts that have a type."""
    found = await page.get("/v1/attributes")
    return [each for each in found["items"] if each["target"] == "contact"]


@router.get("/contacts/{id:uuid}/erase")
async def erase_form(page: Here, id: UUID) -> Response:
    """Say what erasing means, and ask whether it is meant."""
    row = await page.get(f"/v1/contacts/{id}")
    return _erase_form(page, id, row, {})


def _erase_form(page: Page, id_: UUID, row: dict[str, Any], mistakes: dict[str, str]) -> Response:
    status, given = 422 if mistakes else 200, typed(page, "version", "sure")
    return page.render("contact_erase.html", status, id=id_, row=row, typed=given, mistakes=mistakes)


@router.post("/contacts/{id:uuid}/erase")
async def erase(page: Here, id: UUID) -> Response:
    """Forget the contact for good, once somebody said that they mean it."""
    if typed(page, "sure")["sure"] != "yes":
        row = await page.get(f"/v1/contacts/{id}")
        mistakes = {"sure": page.text("Confirm that you mean it; nothing was erased.")}
        return _erase_form(page, id, row, mistakes)
    try:
        done = await page.send("POST", f"/v1/contacts/{id}/erase")
    except RefusedError as error:
        row = await page.get(f"/v1/contacts/{id}")
        return _erase_form(page, id, row, await mistakes_of(page, error, {}))
    return page.go_to(link(f"/contacts/{id}", {"at_least": done["position"]}))


@router.get("/contacts/{id:uuid}/edit")
async def edit_form(page: Here, id: UUID) -> Response:
    """Ask what has changed."""
    row, defined = await asyncio.gather(page.get(f"/v1/contacts/{id}"), _definitions(page))
    attributes = dict(row["attributes"])
    fields = [{**each, "value": _shown(attributes.pop(each["key"], None))} for each in defined]
    free = [{"key": key, "value": _written(value)} for key, value in attributes.items()]
    form = {
        "name": row["name"] or "",
        "phones": "\n".join(row["phones"]),
        "emails": "\n".join(row["emails"]),
        "version": str(row["version"]),
    }
    return _form(page, id, form, fields, free, {})


def _form(
    page: Page,
    id_: UUID,
    form: dict[str, str],
    fields: list[dict[str, Any]],
    free: list[dict[str, str]],
    mistakes: dict[str, str],
) -> Response:
    free = free + [{"key": "", "value": ""}] * _EMPTY_ROWS
    status = 422 if mistakes else 200
    return page.render("contact_edit.html", status, id=id_, typed=form, fields=fields, free=free, mistakes=mistakes)


def _shown(value: Any) -> Any:
    """An attribute's value as a form holds it: a list stays one, what is no text is written as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str | list) else orjson.dumps(value).decode()


def _written(value: Any) -> str:
    """A value of no defined type in one line."""
    shown = _shown(value)
    return ", ".join(shown) if isinstance(shown, list) else shown


@router.post("/contacts/{id:uuid}/edit")
async def edit(page: Here, id: UUID) -> Response:
    """Replace what is known of the contact."""
    row, defined = await asyncio.gather(page.get(f"/v1/contacts/{id}"), _definitions(page))
    form = typed(page, "name", "phones", "emails", "version")
    mistakes: dict[str, str] = {}
    fields = [{**each, "value": _given(page, each)} for each in defined]
    keys = {each["key"] for each in defined}
    free = [
        {"key": str(key).strip(), "value": str(value).strip()}
        for key, value in zip(page.form.getlist("key"), page.form.getlist("value"), strict=False)
        if str(key).strip() or str(value).strip()
    ]
    attributes: dict[str, Any] = {}
    for field in fields:
        place = f"attribute-{field['key']}"
        if field["type"] == "number" and field["value"] and _number(field["value"]) is None:
            mistakes[place] = page.text(_NOT_A_NUMBER)
        elif field["value"] not in ("", []):
            attributes[field["key"]] = _meant(field)
    for number, each in enumerate(free):
        if not each["key"]:
            mistakes[f"free-{number}"] = page.text(_WITHOUT_KEY)
        elif each["value"] and each["key"] not in keys:
            before = row["attributes"].get(each["key"])
            attributes[each["key"]] = before if each["value"] == _written(before) else each["value"]
    if mistakes:
        return _form(page, id, form, fields, free, mistakes)
    lines = {name: [line.strip() for line in form[name].split("\n") if line.strip()] for name in ("phones", "emails")}
    body = {"name": form["name"] or None, "attributes": attributes} | lines
    try:
        done = await page.send("PUT", f"/v1/contacts/{id}", body)
    except RefusedError as error:
        known = {name: name for name in ("name", "phones", "emails")}
        known |= {each["key"]: f"attribute-{each['key']}" for each in defined}
        known |= {each["key"]: f"free-{number}" for number, each in enumerate(free)}
        mistakes = await mistakes_of(page, error, known)
        if error.code == "attribute-of-wrong-type":
            key = next((key for key in attributes if f"'{key}'" in str(error.problem.get("detail"))), "")
            is_date = any((each["key"], each["type"]) == (key, "date") for each in fields)
            mistakes = {known.get(key, ""): page.text(_NOT_A_DATE) if is_date else mistakes.get("", "")}
        for name, help_ in (("phones", _PHONES), ("emails", _EMAILS)):
            if name in mistakes:
                mistakes[name] = page.text(help_)
        for place in [place for place in mistakes if place.startswith("free-")]:
            mistakes[place] = page.text(_KEYS) if error.code == "invalid-request" else mistakes[place]
        return _form(page, id, form, fields, free, mistakes)
    return page.go_to(link(f"/contacts/{id}", {"at_least": done["position"]}))


def _given(page: Page, field: dict[str, Any]) -> Any:
    """What the form holds of a defined attribute."""
    values = [str(each).strip() for each in page.form.getlist(f"attribute-{field['key']}")]
    if field["type"] == "list":
        return [value for value in values if value]
    return values[0] if values else ""


def _meant(field: dict[str, Any]) -> Any:
    """The attribute's value."""
    match field["type"]:
        case "number":
            return _number(field["value"])
        case "checkbox":
            return field["value"] == "true"
        case "list" if len(field["value"]) == 1:
            return field["value"][0]
        case _:
            return field["value"]


def _number(text: str) -> int | float | None:
    """The number that is written there, with a comma or a point, if the API takes it."""
    try:
        whole = int(text)
    except ValueError:
        pass
    else:
        return whole if abs(whole) < 2**53 else None
    try:
        found = float(text.replace(",", "."))
    except ValueError:
        return None
    return found if isfinite(found) else None
