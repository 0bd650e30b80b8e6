"""What is done to conversations over HTTP: open one, act on it.

Invariant: a command route only turns the request into a command; what is allowed is decided in the domain.
"""

import secrets
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import Field
from starlette.responses import Response
from uuid_utils.compat import uuid7

from api import demo
from api.access import Commands, answer, command_route
from api.contacts import how_reached
from domain.commands import (
    AddLabel,
    AddNote,
    Assume,
    ChangePriority,
    Finalize,
    FinalizeAutomatically,
    HandOffFromBot,
    HandOffToBot,
    Insider,
    MarkPending,
    OpenConversation,
    ReassignContact,
    ReceiveMessage,
    RemoveLabel,
    Reopen,
    SendMessage,
    SetAttribute,
    Transfer,
)
from domain.errors import InvalidCommandError
from domain.events import (
    Attachment,
    Fact,
    FinalizationCause,
    Line,
    MessageKind,
    Slug,
    Surface,
    Text,
)

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])
ConversationId = Annotated[UUID, Path(description="the conversation's id", examples=[demo.CONVERSATION])]


class Opening(Fact):
    """A conversation to start."""

    id: Annotated[UUID | None, Field(description="chosen by the client, so that a repeat is recognised")] = None
    protocol: Annotated[
        str | None,
        Field(
            min_length=1, max_length=64, pattern=r"^[^\x00]*$", description="need not be unique; else one is made up"
        ),
    ] = None
    channel: Slug
    contact_id: UUID
    sector_id: UUID | None = None
    agent_id: Annotated[UUID | None, Field(description="yourself, to have it at once")] = None
    subject: Line | None = None


class Reassignment(Fact):
    """Whom it is with."""

    contact_id: UUID


class Message(Fact):
    """A message that the contact wrote (received) or that is written to them (sent)."""

    direction: Literal["received", "sent"]
    message_id: Annotated[UUID | None, Field(description="the channel's id for it, so that a repeat is recognised")] = (
        None
    )
    kind: MessageKind = MessageKind.TEXT
    text: Text = ""
    attachments: Annotated[tuple[Attachment, ...], Field(max_length=50)] = ()
    author: Annotated[Insider | None, Field(description="who wrote it, where an integration says it")] = None


class Note(Fact):
    """Something that the contact does not see."""

    message_id: UUID | None = None
    text: Text


class Assumption(Fact):
    """Who takes it; without ``agent_id`` the caller."""

    agent_id: UUID | None = None


class Finalization(Fact):
    """Ending it: by a person in the inbox or from the listing, or (with ``cause``) without a person."""

    surface: Literal[Surface.INBOX, Surface.LISTING, Surface.AUTOMATION, Surface.BOT]
    outcome: Line = ""
    comment: Text | None = None
    cause: FinalizationCause | None = None


def new_protocol() -> str:
    """A number to tell on the phone: the day and twelve random digits, 20 in all as is usual in Brazil."""
    return f"{datetime.now(UTC):%Y%m%d}{secrets.randbelow(10**12):012d}"


@command_route(
    router,
    "",
    "Open a conversation",
    status=201,
    example={"channel": "whatsapp", "contact_id": str(demo.CONTACT), "sector_id": str(demo.SECTOR)},
)
async def open_conversation(body: Opening, commands: Commands) -> Response:
    """Start a conversation with a contact; it is pending, or in progress where you open it for yourself.

    Where your permissions on contacts do not reach all of the workspace, the contact is one with a conversation within
    their reach, or one whom you have registered.
    """
    command = OpenConversation(
        protocol=body.protocol or new_protocol(),
        channel=body.channel,
        contact_id=body.contact_id,
        sector_id=body.sector_id,
        agent_id=body.agent_id,
        subject=body.subject,
        **await how_reached(commands, body.contact_id),
    )
    return answer(await commands.execute(command, body.id or uuid7()), 201, "/v1/conversations")


@command_route(
    router,
    "/{id}/messages",
    "Record a message",
    example={"direction": "sent", "text": "Bom dia! Já procuro o seu pedido."},
)
async def add_message(id: ConversationId, body: Message, commands: Commands) -> Response:
    """Record what the contact wrote, or what is written to them; a repeated ``message_id`` is recognised.

    What the contact wrote is recorded by integrations only, and reopens a finalized conversation. A bot that was taken
    over is refused with `bot-not-in-charge`.
    """
    message_id = body.message_id or uuid7()
    content = {"kind": body.kind, "text": body.text, "attachments": body.attachments}
    if body.direction == "received":
        command: ReceiveMessage | SendMessage = ReceiveMessage(message_id=message_id, **content)
    else:
        command = SendMessage(message_id=message_id, author=body.author or commands.caller.actor, **content)
    key = f"message:{id}:{message_id}" if body.message_id else None
    return answer(await commands.execute(command, id, key=key))


@command_route(router, "/{id}/notes", "Add a note", example={"text": "Cliente antigo, prioridade."})
async def add_note(id: ConversationId, body: Note, commands: Commands) -> Response:
    """Write something that the contact does not see."""
    message_id = body.message_id or uuid7()
    command = AddNote(message_id=message_id, author=commands.caller.actor, text=body.text)
    key = f"message:{id}:{message_id}" if body.message_id else None
    return answer(await commands.execute(command, id, key=key))


@command_route(
    router, "/{id}/handoff-to-bot", "Hand off to a bot", example={"bot": "triagem", "reason": "fora do horário"}
)
async def hand_off_to_bot(id: ConversationId, body: HandOffToBot, commands: Commands) -> Response:
    """Let a bot answer."""
    return answer(await commands.execute(body, id))


@command_route(
    router,
    "/{id}/handoff-from-bot",
    "Hand off from the bot",
    example={"sector_id": str(demo.SECTOR), "reason": "pediu uma pessoa"},
)
async def hand_off_from_bot(id: ConversationId, body: HandOffFromBot, commands: Commands) -> Response:
    """The bot gives up its turn (transbordo); a person must pick it up."""
    return answer(await commands.execute(body, id))


@command_route(router, "/{id}/pending", "Put back to the queue", example={"reason": "released"})
async def mark_pending(id: ConversationId, body: MarkPending, commands: Commands) -> Response:
    """Let it go back to a sector's queue."""
    return answer(await commands.execute(body, id))


@command_route(router, "/{id}/assume", "Assume", example={})
async def assume(id: ConversationId, body: Assumption, commands: Commands) -> Response:
    """Take it; an integration says who does."""
    agent_id = body.agent_id or commands.caller.agent_id
    if agent_id is None:
        msg = "This token is no agent's: say which agent assumes it, in 'agent_id'."
        raise InvalidCommandError(msg)
    return answer(await commands.execute(Assume(agent_id=agent_id), id))


@command_route(
    router, "/{id}/transfer", "Transfer", example={"sector_id": str(demo.OTHER_SECTOR), "reason": "quer comprar mais"}
)
async def transfer(id: ConversationId, body: Transfer, commands: Commands) -> Response:
    """Give it to a sector's queue, or to an agent."""
    return answer(await commands.execute(body, id))


@command_route(
    router,
    "/{id}/finalize",
    "Finalize",
    example={"surface": "listing", "outcome": "resolvida", "comment": "Pedido reenviado."},
)
async def finalize(id: ConversationId, body: Finalization, commands: Commands) -> Response:
    """End it. ``surface`` says where from, which is a permission of its own and stays in the history for ever."""
    if body.surface in {Surface.INBOX, Surface.LISTING}:
        if body.cause is not None:
            msg = "A 'cause' belongs to the surfaces 'automation' and 'bot'; a person gives an 'outcome'."
            raise InvalidCommandError(msg)
        command: Finalize | FinalizeAutomatically = Finalize(
            surface=body.surface, outcome=body.outcome, comment=body.comment
        )
    elif body.cause is None:
        msg = "Without a person, say why: give a 'cause'."
        raise InvalidCommandError(msg)
    else:
        command = FinalizeAutomatically(cause=body.cause)
    return answer(await commands.execute(command, id, surface=body.surface))


@command_route(router, "/{id}/reopen", "Reopen", example={"reason": "o cliente voltou"})
async def reopen(id: ConversationId, body: Reopen, commands: Commands) -> Response:
    """Go on with a finalized conversation: a new episode."""
    return answer(await commands.execute(body, id))


@command_route(router, "/{id}/labels", "Add a label", example={"label": "vip"})
async def add_label(id: ConversationId, body: AddLabel, commands: Commands) -> Response:
    """Put a label on."""
    return answer(await commands.execute(body, id))


@command_route(router, "/{id}/labels/{label}", "Remove a label", method="DELETE")
async def remove_label(
    id: ConversationId, label: Annotated[Slug, Path(examples=["vip"])], commands: Commands
) -> Response:
    """Take a label off."""
    return answer(await commands.execute(RemoveLabel(label=label), id))


@command_route(router, "/{id}/priority", "Change the priority", example={"priority": "high"})
async def change_priority(id: ConversationId, body: ChangePriority, commands: Commands) -> Response:
    """Make it more or less urgent."""
    return answer(await commands.execute(body, id))


@command_route(router, "/{id}/attributes", "Set an attribute", example={"key": "pedido", "value": "4711"})
async def set_attribute(id: ConversationId, body: SetAttribute, commands: Commands) -> Response:
    """Give a custom attribute a value; null takes it away."""
    return answer(await commands.execute(body, id))


@command_route(router, "/{id}/contact", "Reassign to another contact", example={"contact_id": str(demo.OTHER_CONTACT)})
async def reassign_contact(id: ConversationId, body: Reassignment, commands: Commands) -> Response:
    """It turned out to be with another contact, whom you must reach or have registered."""
    command = ReassignContact(contact_id=body.contact_id, **await how_reached(commands, body.contact_id))
    return answer(await commands.execute(command, id))
