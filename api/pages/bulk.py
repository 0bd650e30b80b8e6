"""Acting on many conversations: what, tried first, then done, with what becomes of each.

Which conversations it is about stands in the address: chosen ids, or the filter under which all were chosen.
"""

from typing import Any
from uuid import UUID

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import FormData, QueryParams
from starlette.responses import Response

from api.pages.asking import RefusedError
from api.pages.columns import PRIORITY_NAMES
from api.pages.directory_names import names
from api.pages.listing_state import BAR, State, state_of
from api.pages.page import Here, Page, link, page_router, refusal
from api.pages.texts import N_
from domain.permissions import Permission

router = page_router()

ACTIONS: dict[str, tuple[str, Permission]] = {
    "finalize": (N_("Finalize"), Permission.FINALIZE_FROM_LISTING),
    "transfer": (N_("Transfer"), Permission.TRANSFER),
    "assume": (N_("Assume"), Permission.ASSUME),
    "mark-pending": (N_("Back to the queue"), Permission.TRANSFER),
    "reopen": (N_("Reopen"), Permission.REOPEN),
    "add-label": (N_("Add a label"), Permission.LABEL),
    "remove-label": (N_("Remove a label"), Permission.LABEL),
    "change-priority": (N_("Change the priority"), Permission.LABEL),
}
"""What can be done with many, and what it takes."""
FIELDS: dict[str, tuple[str, ...]] = {
    "finalize": ("outcome", "comment"),
    "transfer": ("target", "reason"),
    "assume": (),
    "mark-pending": ("reason",),
    "reopen": ("reason",),
    "add-label": ("new-label",),
    "remove-label": ("new-label",),
    "change-priority": ("priority",),
}
"""What is asked for beside; none is called like a filter."""
STATES = {
    "waiting": N_("Waiting for its turn"),
    "running": N_("Under way"),
    "done": N_("Done"),
    "cancelled": N_("Cancelled"),
    "stopped": N_("Stopped"),
}
OUTCOMES = {
    "changed": N_("Changed"),
    "already": N_("Already so"),
    "refused": N_("Refused"),
    "failed": N_("Failed"),
}
MISTAKES = {
    "outcome": N_("At most 500 characters."),
    "reason": N_("At most 500 characters."),
    "comment": N_("At most 65,536 characters."),
    "new-label": N_("Lower-case letters, digits, '-', '_' and '.', 64 at most."),
    "priority": N_("There is no such priority."),
    "target": N_("Choose a sector or an agent."),
    "on": N_("Choose conversations first."),
}

assert not {name for names_ in FIELDS.values() for name in names_} & {*BAR}


def actions(page: Page) -> dict[str, str]:
    """What whoever signed in may do with many."""
    return {action: name for action, (name, permission) in ACTIONS.items() if page.may(permission)}


class _On:
    """Which conversations, as the address or a form says."""

    def __init__(self, page: Page, given: QueryParams | FormData) -> None:
        self.ids = [str(each) for each in given.getlist("id")]
        self.is_all = "all" in given
        self.state: State = state_of(given, page.formats)

    @property
    def query(self) -> list[tuple[str, str]]:
        """As parameters."""
        chosen = [("all", "yes")] if self.is_all else [("id", each) for each in self.ids]
        return [*chosen, *self.state.query(BAR)]

    def body(self) -> dict[str, Any]:
        """As the API takes it; raises `RequestValidationError`."""
        return {"filter": orjson.loads(self.state.filter_json())} if self.is_all else {"ids": self.ids}


@router.get("/bulk/new")
async def new_bulk_action(page: Here) -> Response:
    """Ask for what the action needs."""
    given = page.request.query_params
    return await _form(page, _On(page, given), given.get("action", ""), given)


@router.post("/bulk")
async def start_bulk_action(page: Here) -> Response:
    """Try it, or do it."""
    form, action = page.form, str(page.form.get("action", ""))
    on, is_trial = _On(page, form), form.get("how") != "do"
    body = {"action": action, "dry_run": is_trial, "parameters": _parameters(action, form)}
    try:
        body["on"] = on.body()
        job = await page.send("POST", "/v1/bulk", body)
    except RequestValidationError:
        return await _form(page, on, action, form, {"on": MISTAKES["on"]})
    except RefusedError as refused:
        if refused.status not in {403, 404, 409, 422}:
            raise
        mistakes = _mistakes(refused.problem) or {"": refusal(page, refused.code)}
        return await _form(page, on, action, form, mistakes)
    return page.go_to(link(f"/bulk/{job['id']}", on.query))


def _parameters(action: str, form: FormData) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in FIELDS.get(action, ()):
        text = str(form.get(name, "")).strip()
        if name == "target":
            kind, _, id_ = text.partition(":")
            found |= {f"{kind}_id": id_} if kind in {"sector", "agent"} else {}
        elif text or name in {"new-label", "priority"}:
            found[name.removeprefix("new-")] = text
    return found


def _mistakes(problem: dict[str, Any]) -> dict[str, str]:
    found = {}
    for error in problem.get("errors", []):
        place = error["in"]
        name = next(
            (name for name in MISTAKES if name.removeprefix("new-") in place), "target" if "parameters" in place else ""
        )
        found[name] = MISTAKES.get(name, N_("Check what is marked, and send it again."))
    return found


async def _form(
    page: Page, on: _On, action: str, given: QueryParams | FormData, mistakes: dict[str, str] | None = None
) -> Response:
    if action not in actions(page) or not (on.ids or on.is_all):
        return page.go_to(on.state.address)
    targets = await page.get("/v1/transfer-targets", {"limit": 1000}) if "target" in FIELDS[action] else {"items": []}
    total = {"count": len(on.ids), "more": False}
    if on.is_all:
        total = (await page.get("/v1/conversations/counts", on.state.query(BAR)))["total"]
    return page.render(
        "bulk_new.html",
        422 if mistakes else 200,
        on=on,
        action=action,
        title=ACTIONS[action][0],
        fields=FIELDS[action],
        given=given,
        total=total,
        targets=targets["items"],
        priorities=PRIORITY_NAMES,
        mistakes=mistakes or {},
    )


@router.get("/bulk/{id}")
async def bulk_action(id: UUID, page: Here) -> Response:
    """How far it is, and what became of those that were refused."""
    job = await page.get(f"/v1/bulk/{id}")
    told = await page.get(f"/v1/bulk/{id}/results", {"outcome": ["refused", "failed"], "limit": 100})
    on = _On(page, page.request.query_params)
    parameters = job["parameters"]
    for kind in ("agent", "sector"):
        if parameters.get(f"{kind}_id"):
            parameters.setdefault("target", f"{kind}:{parameters[f'{kind}_id']}")
    return page.render(
        "bulk_part.html" if page.request.headers.get("fragment") == "job" else "bulk_job.html",
        job=job,
        title=ACTIONS[job["action"]][0],
        states=STATES,
        outcomes=OUTCOMES,
        is_over=job["state"] in {"done", "cancelled", "stopped"},
        refused=[{**each, "why": refusal(page, each["code"] or "") or each["code"]} for each in told["items"]],
        more=told["next"] is not None,
        on=on,
        can_be_done=bool(on.ids or on.is_all) and job["dry_run"] and job["changed"] > 0,
        given=[
            (name, parameters[plain])
            for name in FIELDS[job["action"]]
            if parameters.get(plain := name.removeprefix("new-"))
        ],
        names=await names(page),
    )


@router.post("/bulk/{id}/cancel")
async def cancel_bulk_action(id: UUID, page: Here) -> Response:
    """End it where it stands."""
    await page.send("POST", f"/v1/bulk/{id}/cancel")
    _, _, chosen = page.request.headers.get("referer", "").partition(f"/bulk/{id}?")  # so that the trial can be done
    return page.go_to(f"/bulk/{id}?{chosen}" if chosen else f"/bulk/{id}")
