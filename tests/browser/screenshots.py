"""`make screenshots`: each page as people see it, desktop and phone, kept in docs/screenshots to be looked at.

The workspace is made up: two weeks of a shop's support, imported, and a few conversations of today.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from playwright.sync_api import expect

DIRECTORY = Path(__file__).parents[2] / "docs" / "screenshots"
SECTORS = {"suporte": "Suporte", "vendas": "Vendas", "financeiro": "Financeiro", "logistica": "Logística"}
AGENTS = ("Bia Nunes", "Davi Rocha", "Carla Mendes", "Rafael Tavares", "Júlia Prado", "Marcos Albuquerque")
FIRST = (
    *("Ana", "Bruno", "Camila", "Diego", "Elisa", "Fábio", "Gabriela", "Heitor"),
    *("Isabela", "João", "Karina", "Lucas", "Marina", "Otávio", "Paula", "Renata"),
)
LAST = (
    *("Souza", "Pereira", "Lima", "Costa", "Almeida", "Ribeiro", "Carvalho", "Gomes"),
    *("Martins", "Araújo", "Teixeira", "Barros"),
)
SUBJECTS = (
    *("Pedido não chegou", "Segunda via do boleto", "Troca de produto", "Orçamento para 40 unidades"),
    *("Cobrança em duplicidade", "Senha não funciona", "Cancelamento", "Nota fiscal errada", "Prazo de entrega"),
    *("Produto com defeito", "Mudança de endereço", "Elogio ao atendimento"),
)
TALK = (
    ("message-received", "Bom dia! Comprei na semana passada e até agora nada."),
    ("message-sent", "Bom dia! Vou verificar agora mesmo. Pode me passar o número do pedido?"),
    ("message-received", "É o 4711, com entrega em Belo Horizonte."),
    ("note", "Transportadora confirma atraso; prometeu para amanhã até as 12 h."),
    ("message-sent", "Encontrei: houve um atraso na transportadora. A entrega está prevista para amanhã até as 12 h."),
    ("message-received", "Perfeito, obrigada!"),
)


def sectors_of(agent: int) -> list[str]:
    """Where an agent serves."""
    return [list(SECTORS)[agent % 4], list(SECTORS)[(agent + 1) % 4]]


def lines(chance: Random) -> Iterator[dict[str, Any]]:
    """Two weeks of a shop, as the import takes them."""
    now = datetime.now(UTC).replace(microsecond=0)
    begin = {"occurred_at": (now - timedelta(days=15)).isoformat()}
    for sector, name in SECTORS.items():
        yield {"type": "sector", "sector": sector, "name": name} | begin
    for number, name in enumerate(AGENTS):
        yield {"type": "agent", "agent": f"a{number}", "name": name, "sectors": sectors_of(number)} | begin
    found: list[tuple[datetime, dict[str, Any]]] = []
    for number in range(240):
        at = now - timedelta(minutes=min(14 * 1440, 4 + chance.expovariate(1 / 3_600)))
        found += conversation(chance, number, at, now)
    for _, line in sorted(found, key=lambda each: each[0]):
        yield line


def conversation(chance: Random, number: int, at: datetime, now: datetime) -> Iterator[tuple[datetime, dict[str, Any]]]:
    """One of them, from its beginning to where it stands by now."""
    name = f"{chance.choice(FIRST)} {chance.choice(LAST)}"
    who = {"contact": f"c{number}", "name": name, "phones": [f"+55 11 9{chance.randrange(10**8):08d}"]}
    who |= {"emails": [f"{name.partition(' ')[0].lower().encode('ascii', 'ignore').decode()}{number}@example.com"]}
    which, sector = {"conversation": f"v{number}"}, chance.choice(list(SECTORS))
    agent = f"a{chance.choice([each for each in range(len(AGENTS)) if sector in sectors_of(each)])}"
    channel = chance.choice(["whatsapp"] * 5 + ["webchat", "webchat", "email", "phone", "instagram"])
    opened = {"protocol": f"{at:%Y%m%d}{number:06d}", "channel": channel, "contact": f"c{number}", "sector": sector}
    steps: list[dict[str, Any]] = [
        {"type": "contact"} | who,
        {"type": "open", "subject": chance.choice(SUBJECTS)} | opened | which,
        {"type": TALK[0][0], "text": TALK[0][1]} | which,
    ]
    if number % 4 == 0:
        steps.append({"type": "handoff-to-bot", "bot": "triagem", "reason": "fora do horário"} | which)
        if number % 8:
            steps.append({"type": "handoff-from-bot", "sector": sector, "reason": "pediu uma pessoa"} | which)
    if number % 5 == 1:
        steps.append({"type": "label-add", "label": chance.choice(["troca", "vip", "reclamacao"])} | which)
    if number % 7 == 2:
        steps.append({"type": "priority", "priority": chance.choice(["high", "urgent", "low"])} | which)
    if number % 8 and number % 9 != 5:
        steps.append({"type": "transfer", "sector": sector, "agent": agent} | which)
        by = {"actor": {"kind": "agent", "id": agent}}
        steps += [
            {"type": kind, "text": text} | which | (by if kind != "message-received" else {}) for kind, text in TALK[1:]
        ]
        ends = {
            "surface": chance.choice(["inbox", "inbox", "listing"]),
            "outcome": chance.choice(["resolvida", "sem resposta"]),
        }
        if chance.random() < 0.72:
            steps.append({"type": "finalize"} | ends | which | by)
    for step in steps:
        if at < now:
            yield at, step | {"occurred_at": at.isoformat(), "id": ""}
        at += timedelta(minutes=chance.expovariate(1 / 14), seconds=chance.randrange(60))


@pytest.fixture(scope="module")
def shop(service: Any, workspace: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The admin of the workspace."""
    admin = workspace("loja")
    file = tmp_path_factory.mktemp("shop") / "shop.ndjson"
    numbered = (line | {"id": str(number)} for number, line in enumerate(lines(Random(4))))
    file.write_text("".join(json.dumps(line) + "\n" for line in numbered))
    command = [sys.executable, "-m", "api", "import", "--workspace", "loja", str(file)]
    environment = {"CONVERSAS_DATABASE_URL": service.database_url, "CONVERSAS_LOG_LEVEL": "error"}
    subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    admin.read("/v1/conversations", limit=1, at_least=admin.log_head())
    for name, query in (("Pendentes há mais de 1 h", "pending"), ("Em atendimento", "in_progress")):
        condition = {"field": "status", "operator": "is", "value": query}
        admin.ok("POST", "/v1/views", {"name": name, "shared": True, "filter": condition, "columns": []})
    return admin


def pages(admin: Any) -> dict[str, tuple[str, str]]:
    """By name: each page's address, and what to do there."""
    items = admin.read("/v1/conversations", status="in_progress", limit=50)["items"]
    here = max(items, key=lambda each: each["version"])
    done = admin.ok("POST", f"/v1/conversations/{here['id']}/priority", {"priority": "high"})
    admin.read("/v1/history", limit=1, at_least=done["position"])
    waiting = admin.read("/v1/conversations", status="pending", limit=3)["items"]
    chosen = "&".join(f"id={each['id']}" for each in waiting)
    filter_ = {
        "and": [
            {"field": "status", "operator": "in", "value": ["pending", "in_progress"]},
            {
                "or": [
                    {"field": "waiting_seconds", "operator": "greater", "value": 3600},
                    {"field": "label", "operator": "is", "value": "vip"},
                ]
            },
        ]
    }
    trial = {
        "action": "finalize",
        "on": {"filter": {"field": "label", "operator": "is", "value": "troca"}},
        "dry_run": True,
        "parameters": {"outcome": "resolvida"},
    }
    job = admin.ok("POST", "/v1/bulk", trial)["id"]
    conversation_, person = f"/conversations/{here['id']}", f"/contacts/{here['contact_id']}"
    return {
        "sign-in": ("/sign-in", ""),
        "listing": ("/", ""),
        "filters": (
            "/?status=pending&status=in_progress&channel=whatsapp",
            "document.querySelector('#menu-sector').open = true",
        ),
        "conditions": (f"/filter?filter={json.dumps(filter_)}", ""),
        "selected": (
            "/?status=pending",
            "[...document.querySelectorAll('td.select input')].slice(0, 3).forEach((each) => each.click())",
        ),
        "bulk": (f"/bulk/new?action=finalize&{chosen}", ""),
        "job": (f"/bulk/{job}?all=yes&label=troca", ""),
        "views": ("/views", ""),
        "conversation": (conversation_, ""),
        "version": (f"{conversation_}?version=4", ""),
        "transfer": (conversation_, "document.querySelector('a[href$=\"/transfer\"]').click()"),
        "finalize": (conversation_, "document.querySelector('a[href$=\"/finalize\"]').click()"),
        "contacts": ("/contacts?q=ana", ""),
        "contact": (person, ""),
        "contact-edit": (f"{person}/edit", ""),
        "contact-erase": (f"{person}/erase", ""),
        "history": ("/history", ""),
        "overview": ("/overview?days=30", ""),
        "empty": ("/?q=ninguém+com+este+nome", ""),
        "missing": ("/conversations/none", ""),
    }


DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
LOOKS: dict[str, dict[str, Any]] = {
    "": {"viewport": DESK},
    "-phone": {"viewport": PHONE},
    "-dark": {"viewport": DESK, "color_scheme": "dark"},
}
DARK = {"listing", "conversation"}
"""Of these is kept how they look in the dark."""


def test_each_page_is_photographed(visit: Any, shop: Any) -> None:
    token = str(shop.headers["authorization"]).removeprefix("Bearer ")
    for look, options in LOOKS.items():
        guests = {True: visit("pt", token, **options), False: visit("pt", **options)}
        for name, (address, script) in pages(shop).items():
            if look == "-dark" and name not in DARK:
                continue
            guest = guests[name != "sign-in"]
            page = guest.go(address)
            if script:
                page.evaluate(script)
            if name in {"transfer", "finalize"}:
                expect(page.get_by_role("dialog")).to_be_visible()
            page.wait_for_function("[...document.images].every((each) => each.complete)")
            page.wait_for_timeout(300)  # for a person to look at: what is live is there by then
            session = guest.context.new_cdp_session(page)
            taken = session.send("Page.captureScreenshot", {"format": "webp", "quality": 82})
            (DIRECTORY / f"{name}{look}.webp").write_bytes(base64.b64decode(taken["data"]))
