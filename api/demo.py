"""The demo workspace: small, made of ordinary commands, the same every time; the OpenAPI examples run on it.

Invariant: every id derives from a name, so that loading it twice adds nothing.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from uuid import NAMESPACE_URL, UUID, uuid5

from adapters.command_handler import CommandHandler
from adapters.deciding import Request
from adapters.identity import digest
from domain.commands import (
    AddLabel,
    Assume,
    Command,
    CreateSector,
    CreateWorkspace,
    Finalize,
    HandOffFromBot,
    HandOffToBot,
    IssueToken,
    JoinSector,
    LinkIdentity,
    OpenConversation,
    ReceiveMessage,
    RegisterAgent,
    RegisterContact,
    SaveView,
    SendMessage,
    Transfer,
    identity_id,
)
from domain.envelope import Stream
from domain.errors import IdempotencyKeyReusedError
from domain.events import Actor, ActorKind, ContactDetails, Surface, ViewContents
from domain.permissions import BUILT_IN_ROLES, Caller


def workspace_id(slug: str) -> UUID:
    """The id of the workspace called ``slug``."""
    return uuid5(NAMESPACE_URL, f"conversas:workspace:{slug}")


WORKSPACE = workspace_id("demo")


def _id(name: str) -> UUID:
    return uuid5(WORKSPACE, name)


SECTOR, OTHER_SECTOR = _id("sector:suporte"), _id("sector:vendas")
ADMIN, AGENT, OTHER_AGENT = _id("agent:admin"), _id("agent:bia"), _id("agent:davi")
SPARE_SECTOR, SPARE_AGENT, SPARE_TOKEN = _id("sector:ouvidoria"), _id("agent:eva"), _id("token:spare")
ISSUER = "https://login.example.com"
SPARE_IDENTITY = identity_id(ISSUER, "davi.rocha")
"""For the examples that close, deactivate, revoke and unlink; `SPARE_CONTACT` and `SPARE_VIEW` are others."""
CONTACT, OTHER_CONTACT, SPARE_CONTACT = _id("contact:ana"), _id("contact:joao"), _id("contact:lia")
CONVERSATION = _id("conversation:1")
VIEW, SPARE_VIEW = _id("view:mine"), _id("view:spare")
BULK_JOB = _id("bulk:1")
"""For the example that starts one."""
ADMIN_ACTOR = Actor(kind=ActorKind.AGENT, id=str(ADMIN))
_SYSTEM = Actor(kind=ActorKind.SYSTEM, id="demo")
_CONTACTS = {
    CONTACT: ContactDetails(name="Ana Souza", phones=("+55 11 98765-4321",), emails=("ana@example.com",)),
    OTHER_CONTACT: ContactDetails(name="João Pereira", phones=("+55 31 91234-5678",)),
}


def load(handler: CommandHandler, token: str | None = None) -> int:
    """Load the demo workspace, and `give_token` its first admin ``token``; the number of events that were new.

    What another version has loaded stays as it told it. Raises whatever else refuses a command: the demo is ours and
    must fit the rules.
    """
    new = 0
    for number, (id_, actor, command) in enumerate(_story()):
        with suppress(IdempotencyKeyReusedError):
            new += _execute(handler, id_, actor, command, f"demo:{number}")
    return new + (give_token(handler, token) if token else 0)


def give_token(handler: CommandHandler, token: str) -> int:
    """Make ``token`` the access token of the demo workspace's first admin; the number of events that were new.

    Raises `AlreadyExistsError` where it was revoked: a token that was is not given again.
    """
    issued = IssueToken(name="bootstrap", secret_sha256=digest(token.encode()), actor=ADMIN_ACTOR, role="admin")
    return _execute(handler, _id(f"token:{digest(token.encode())}"), _SYSTEM, issued)


def _execute(handler: CommandHandler, id_: UUID, actor: Actor, command: Command, key: str | None = None) -> int:
    request_id = _id(f"request:{key}")
    [answer] = handler.handle(
        [
            Request(
                stream=Stream(WORKSPACE, command.STREAM, id_),
                command=command,
                caller=Caller(WORKSPACE, actor, BUILT_IN_ROLES["admin"], agent_id=_agent_id(actor)),
                surface=command.surface if isinstance(command, Finalize) else Surface.API,
                request_id=request_id,
                correlation_id=request_id,
                keys=(key,) if key else (),
                fingerprint=hashlib.sha256(repr((id_, command)).encode()).digest(),
            )
        ]
    )
    if isinstance(answer, Exception):
        raise answer
    return 0 if answer.replayed else answer.events


def _agent_id(actor: Actor) -> UUID | None:
    return UUID(actor.id) if actor.kind is ActorKind.AGENT else None


def _story() -> Iterator[tuple[UUID, Actor, Command]]:
    """What happens in the demo workspace, in order: on which aggregate, by whom, what."""
    yield WORKSPACE, _SYSTEM, CreateWorkspace(slug="demo", name="Demonstração")
    for sector, name in ((SECTOR, "Suporte"), (OTHER_SECTOR, "Vendas")):
        yield sector, _SYSTEM, CreateSector(name=name)
    for agent, name, role in (
        (ADMIN, "Administradora", "admin"),
        (AGENT, "Bia Nunes", "agent"),
        (OTHER_AGENT, "Davi Rocha", "agent"),
    ):
        yield agent, _SYSTEM, RegisterAgent(name=name, role=role)
        for sector in (SECTOR, OTHER_SECTOR) if agent != AGENT else (SECTOR,):
            yield agent, _SYSTEM, JoinSector(sector_id=sector)
    for contact, details in _CONTACTS.items():
        yield contact, _SYSTEM, RegisterContact(contact_id=contact, details=details)
    yield from _conversations()
    yield SPARE_SECTOR, _SYSTEM, CreateSector(name="Ouvidoria")
    yield SPARE_AGENT, _SYSTEM, RegisterAgent(name="Eva Dias")
    crm = Actor(kind=ActorKind.INTEGRATION, id="crm")
    for view, name, status in ((VIEW, "Pendentes", "pending"), (SPARE_VIEW, "Em andamento", "in_progress")):
        kept = ViewContents(name=name, filter=f'{{"field":"status","operator":"is","value":"{status}"}}')
        yield view, ADMIN_ACTOR, SaveView(owner=ADMIN_ACTOR, contents=kept, sort="waiting_since", descending=False)
    no_secret = "0" * 64  # nothing that anybody could know has this hash
    yield SPARE_TOKEN, _SYSTEM, IssueToken(name="CRM", secret_sha256=no_secret, actor=crm, role="integration")
    davi = LinkIdentity(issuer=ISSUER, subject="davi.rocha", agent_id=OTHER_AGENT, role="agent")
    yield SPARE_IDENTITY, _SYSTEM, davi
    yield SPARE_CONTACT, _SYSTEM, RegisterContact(contact_id=SPARE_CONTACT, details=ContactDetails(name="Lia Campos"))


def _conversations() -> Iterator[tuple[UUID, Actor, Command]]:
    whatsapp = Actor(kind=ActorKind.INTEGRATION, id="whatsapp")
    bot = Actor(kind=ActorKind.BOT, id="triagem")
    bia, davi = (Actor(kind=ActorKind.AGENT, id=str(agent)) for agent in (AGENT, OTHER_AGENT))
    for number, (contact, channel, subject) in enumerate(
        (
            (CONTACT, "whatsapp", "Pedido não chegou"),
            (OTHER_CONTACT, "webchat", "Segunda via do boleto"),
            (CONTACT, "phone", "Troca de produto"),
            (OTHER_CONTACT, "email", "Orçamento"),
        ),
        start=1,
    ):
        conversation = _id(f"conversation:{number}")
        yield (
            conversation,
            whatsapp,
            OpenConversation(
                protocol=f"20261122{number:012d}",
                channel=channel,
                contact_id=contact,
                sector_id=SECTOR,
                subject=subject,
            ),
        )
        message = _id(f"message:{number}:1")
        yield conversation, whatsapp, ReceiveMessage(message_id=message, text=f"Olá! {subject}.")
    second, third, fourth = (_id(f"conversation:{number}") for number in (2, 3, 4))
    yield second, whatsapp, HandOffToBot(bot="triagem", reason="fora do horário")
    hello = "Olá! Sou a Triagem. Em que posso ajudar?"
    yield second, bot, SendMessage(message_id=_id("message:2:2"), author=bot, text=hello)
    yield third, bia, Assume(agent_id=AGENT)
    yield third, bia, SendMessage(message_id=_id("message:3:2"), author=bia, text="Bom dia, Ana! Já vejo para você.")
    yield third, bia, Transfer(sector_id=OTHER_SECTOR, agent_id=OTHER_AGENT, reason="troca é com vendas")
    yield third, davi, AddLabel(label="troca")
    yield fourth, whatsapp, HandOffToBot(bot="triagem")
    yield fourth, whatsapp, HandOffFromBot(sector_id=OTHER_SECTOR, reason="pediu uma pessoa")
    yield fourth, davi, Assume(agent_id=OTHER_AGENT)
    yield fourth, ADMIN_ACTOR, Finalize(surface=Surface.LISTING, outcome="resolvida", comment="Orçamento enviado.")
