"""What the parts write: conversations and notes in them, by the admin of a workspace.

Invariant: a stored note is about 300 bytes, as the measurements that the architecture rests on were.
"""

from uuid import UUID, uuid4

from adapters.command_handler import CommandHandler
from adapters.contact_keys import ContactKeys
from adapters.deciding import Request
from api.keys import contact_keys_of
from api.settings import Settings
from domain.commands import AddNote, Command, OpenConversation, RegisterContact
from domain.envelope import Stream
from domain.events import Actor, ActorKind, ContactDetails, Surface
from domain.permissions import BUILT_IN_ROLES, Caller

WORKSPACE = UUID(int=1)
ACTOR = Actor(kind=ActorKind.AGENT, id=str(UUID(int=2)))
CALLER = Caller(WORKSPACE, ACTOR, BUILT_IN_ROLES["admin"], agent_id=UUID(int=2))
TEXT = "O cliente pede retorno amanhã cedo; o pedido está parado na transportadora desde sexta-feira."
BATCH = 500


def keys(conninfo: str) -> ContactKeys:
    """The keys that the service would use with this log."""
    return contact_keys_of(Settings(database_url=conninfo), conninfo)


def request(command: Command, id_: UUID, workspace_id: UUID = WORKSPACE) -> Request:
    """``command`` on the aggregate ``id_``, without an idempotency key."""
    request_id = uuid4()
    return Request(
        stream=Stream(workspace_id, command.STREAM, id_),
        command=command,
        caller=CALLER,
        surface=Surface.API,
        request_id=request_id,
        correlation_id=request_id,
    )


def note(conversation_id: UUID, workspace_id: UUID = WORKSPACE) -> Request:
    """A note on a conversation."""
    return request(AddNote(message_id=uuid4(), author=ACTOR, text=TEXT), conversation_id, workspace_id)


def opening(contact_id: UUID, workspace_id: UUID = WORKSPACE) -> Request:
    """A new conversation."""
    id_ = uuid4()
    return request(OpenConversation(protocol=str(id_), channel="webchat", contact_id=contact_id), id_, workspace_id)


def contact(handler: CommandHandler, workspace_id: UUID = WORKSPACE) -> UUID:
    """A contact to open conversations with."""
    id_ = uuid4()
    known = RegisterContact(contact_id=id_, details=ContactDetails(name="Ana"))
    write(handler, [request(known, id_, workspace_id)])
    return id_


def conversations(handler: CommandHandler, count: int) -> list[UUID]:
    """So many new conversations."""
    contact_id = contact(handler)
    requests = [opening(contact_id) for _ in range(count)]
    write(handler, requests)
    return [request.stream.id for request in requests]


def write(handler: CommandHandler, requests: list[Request]) -> None:
    """Carry out ``requests``, which must all succeed."""
    for start in range(0, len(requests), BATCH):
        for answer in handler.handle(requests[start : start + BATCH]):
            if isinstance(answer, Exception):
                raise answer
