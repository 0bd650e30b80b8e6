"""A workspace whose every text is hostile, through the API, and all pages that show some of it.

Invariant: each text is as long as the API takes it there, messages 10,000 characters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

Client = Any
OWNED = "document.title='owned';document.documentElement.dataset.owned='yes'"
_ZALGO = "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324\u031e\u0349\u035a\u032f\u031e\u0320\u034d"
KINDS = {
    "markup": f'<script>{OWNED}</script><img src=x onerror="{OWNED}"><style>*{{display:none}}</style></bdi></p></div>',
    "breaking out": f'\'"><svg/onload="{OWNED}"><img src=https://elsewhere.example/x.png>{{{{7*7}}}}%(n)s<!--',
    "right to left": "\u202e\u2067\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202dexe.txt\u2066\u202a",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈👍🏿",
    "marks": _ZALGO,
    "long": "W",
    "invisible": "\u200b\ufeff\u00ad\u2028\u2029\u0007 \t",
}
"""What texts consist of; markup comes once, the others are repeated until they are long."""
PREFIX = {name: f"{name.title()} " for name in KINDS}


def text(kind: str, most: int) -> str:
    """A hostile text of at most ``most`` characters."""
    body = KINDS[kind]
    once = kind in {"markup", "breaking out"}
    filled = body + "y" * most if once else body * (most // len(body) + 1)
    return (PREFIX[kind] + filled)[:most]


@dataclass
class World:
    """What was made, by kind of text: ids."""

    admin: Client
    contacts: dict[str, str] = field(default_factory=dict)
    conversations: dict[str, str] = field(default_factory=dict)
    job: str = ""
    position: int = 0

    def pages(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """By name: the address of every page, and hostile texts of which it must show the beginning."""
        kinds = tuple(KINDS)
        names = tuple(text(kind, 60) for kind in kinds)
        columns = "&".join(f"columns={name}" for name in _COLUMNS)
        found: dict[str, tuple[str, tuple[str, ...]]] = {
            "sign-in": (f"/sign-in?next=/{quote(text('markup', 60))}", ()),
            "listing": ("/", names),
            "all columns": (f"/?{columns}", names),
            "nothing found": (f"/?q={quote(text('markup', 200))}", (text("markup", 60),)),
            "mistakes": (f"/?label={quote(text('markup', 300))}&opened_from={quote(text('emoji', 50))}", ()),
            "conditions": (f"/filter?filter={quote(_filter(text('breaking out', 200)))}", ()),
            "views": ("/views", names),
            "a view to save": (f"/views/new?q={quote(text('markup', 200))}", ()),
            "bulk action": (f"/bulk/new?action=transfer&id={self.conversations['markup']}", ()),
            "bulk job": (f"/bulk/{self.job}", ()),
            "contacts": ("/contacts?q=", ()),
            "history": ("/history", ()),
            "overview": ("/overview?days=7", ()),
            "not there": (f"/{quote(text('markup', 60))}", ()),
        }
        for kind in kinds:
            conversation, contact = f"/conversations/{self.conversations[kind]}", f"/contacts/{self.contacts[kind]}"
            found[f"conversation: {kind}"] = (conversation, (text(kind, 10_000), text(kind, 60)))
            found[f"contact: {kind}"] = (contact, (text(kind, 200), text(kind, 500)))
        markup, person = f"/conversations/{self.conversations['markup']}", f"/contacts/{self.contacts['markup']}"
        found["past version"] = (f"{markup}?version=3", (text("markup", 60),))
        found["transfer"] = (f"/conversations/{self.conversations['long']}/transfer", names)
        found["finalize"] = (f"/conversations/{self.conversations['long']}/finalize", ())
        found["edit a contact"] = (f"{person}/edit", ())
        found["erase a contact"] = (f"{person}/erase", (text("markup", 60),))
        return found


_COLUMNS = (
    *("contact_name", "status", "subject", "channel", "sector_id", "agent_id", "bot", "priority", "labels", "outcome"),
    *("opened_by", "finalized_by", "finalized_from", "contact_phones", "contact_emails", "protocol", "opened_at"),
)


def _filter(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{{"field":"subject","operator":"contains","value":"{escaped}"}}'


def make(admin: Client) -> World:
    """Make it, as the workspace's admin."""
    world = World(admin)
    options = [text(kind, 200) for kind in KINDS]
    admin.ok("PUT", "/v1/attributes/contact/kind", {"label": text("markup", 200), "type": "list", "options": options})
    for number, kind in enumerate(KINDS):
        _one(world, kind, number)
    body = {"ids": [world.conversations["markup"]]}
    wanted = {"action": "finalize", "on": body, "parameters": {"outcome": text("markup", 500)}, "dry_run": True}
    world.job = admin.ok("POST", "/v1/bulk", wanted)["id"]
    admin.read("/v1/history", at_least=world.position, limit=1)
    admin.read("/v1/conversations", at_least=world.position, limit=1)
    return world


def _one(world: World, kind: str, number: int) -> None:
    admin = world.admin
    label = (f"{number}" + "w" * 63)[:64]
    sector = admin.ok("POST", "/v1/sectors", {"name": text(kind, 200)})["id"]
    agent = admin.ok("POST", "/v1/agents", {"name": text(kind, 200)})["id"]
    admin.ok("PUT", f"/v1/agents/{agent}/sectors/{sector}")
    details = {
        "name": text(kind, 200),
        "phones": [f"+55 11 9{number}" + "9" * 20],
        "emails": [f'<img/src=x/onerror="{OWNED}">{number}' + "m" * 100 + "@elsewhere.example"],
        "attributes": {"kind": text(kind, 200), label: text(kind, 500)},
    }
    contact = world.contacts[kind] = admin.ok("POST", "/v1/contacts", details)["id"]
    wanted = {"channel": label, "contact_id": contact, "subject": text(kind, 500), "protocol": text(kind, 64)}
    conversation = world.conversations[kind] = admin.ok("POST", "/v1/conversations", wanted)["id"]
    path = f"/v1/conversations/{conversation}"
    picture = {"media_type": "image/png", "size_bytes": 1, "url": "https://elsewhere.example/a.png", "sha256": "0" * 64}
    sent = {"direction": "received", "text": text(kind, 10_000), "attachments": [{"name": text(kind, 200), **picture}]}
    for what, body in (
        ("messages", sent),
        ("notes", {"text": text(kind, 10_000)}),
        ("labels", {"label": label}),
        ("attributes", {"key": label, "value": [text(kind, 500)] * 3}),
        ("handoff-to-bot", {"bot": label, "reason": text(kind, 500)}),
        ("transfer", {"sector_id": sector, "agent_id": agent, "reason": text(kind, 500)}),
        ("finalize", {"surface": "listing", "outcome": text(kind, 500), "comment": text(kind, 10_000)}),
        ("reopen", {"reason": text(kind, 500)}),
    ):
        by = admin.channel if what == "messages" else admin
        world.position = by.ok("POST", f"{path}/{what}", body)["position"]
    admin.ok("POST", "/v1/views", {"name": text(kind, 200), "shared": True, "filter": {"and": []}, "columns": []})
