"""Every way in which the domain refuses, each with a stable code that clients may rely on.

Invariant: an error knows nothing of HTTP; `api/problems.py` maps each class to a status. Nothing was changed when one
is raised.
"""

from typing import ClassVar


class DomainError(Exception):
    """A command was refused; ``code`` is stable, the message says what to do next."""

    code: ClassVar[str]

    def __init__(self, detail: str = "") -> None:
        self.detail = detail or (self.__doc__ or "").strip()
        super().__init__(self.detail)


class NotFoundError(DomainError):
    """It does not exist, or not for this caller."""

    code = "not-found"


class ConversationNotFoundError(NotFoundError):
    """There is no such conversation within your scope."""

    code = "conversation-not-found"


class ContactNotFoundError(NotFoundError):
    """There is no such contact; register it first."""

    code = "contact-not-found"


class SectorNotFoundError(NotFoundError):
    """There is no such sector in this workspace."""

    code = "sector-not-found"


class AgentNotFoundError(NotFoundError):
    """There is no such agent in this workspace."""

    code = "agent-not-found"


class RoleNotFoundError(NotFoundError):
    """There is no such role: use a built-in one or define it first."""

    code = "role-not-found"


class TokenNotFoundError(NotFoundError):
    """There is no such access token."""

    code = "token-not-found"


class IdentityNotFoundError(NotFoundError):
    """There is no such identity in this workspace."""

    code = "identity-not-found"


class AttributeNotFoundError(NotFoundError):
    """There is no such attribute in this workspace: define it first."""

    code = "attribute-not-found"


class ViewNotFoundError(NotFoundError):
    """There is no such view, or not for you."""

    code = "view-not-found"


class BulkJobNotFoundError(NotFoundError):
    """There is no such bulk action, or it is somebody else's."""

    code = "bulk-job-not-found"


class ProofNotFoundError(NotFoundError):
    """There is no such event in the verifiable log, or the log was never of that size."""

    code = "proof-not-found"


class PermissionDeniedError(DomainError):
    """Your role does not grant this; ask an administrator for the permission it names."""

    code = "permission-denied"


class InvalidCommandError(DomainError):
    """The command contradicts itself."""

    code = "invalid-command"


class RuleError(DomainError):
    """A rule of the lifecycle refuses this in the present state."""

    code = "refused"


class RoleBuiltInError(RuleError):
    """A built-in role stays as it is; define one of your own under another name."""

    code = "role-built-in"


class AlreadyExistsError(RuleError):
    """This id is taken by something else; choose another."""

    code = "already-exists"


class ConversationAlreadyFinalizedError(RuleError):
    """The conversation is finalized; reopen it first."""

    code = "conversation-already-finalized"


class ConversationNotFinalizedError(RuleError):
    """The conversation is open: there is nothing to reopen; assume it instead."""

    code = "conversation-not-finalized"


class ConversationAlreadyPendingError(RuleError):
    """It is pending in another sector; transfer it instead."""

    code = "conversation-already-pending"


class ConversationAlreadyAssumedError(RuleError):
    """Another agent has it; transfer it instead."""

    code = "conversation-already-assumed"


class ConversationWithBotError(RuleError):
    """A bot has it; hand it off from the bot or assume it first."""

    code = "conversation-with-bot"


class ConversationNotWithBotError(RuleError):
    """No bot has it."""

    code = "conversation-not-with-bot"


class BotNotInChargeError(RuleError):
    """A person or another bot has taken over: stop writing until it is handed back."""

    code = "bot-not-in-charge"


class AgentNotInSectorError(RuleError):
    """The agent does not serve in that sector."""

    code = "agent-not-in-sector"


class AgentInactiveError(RuleError):
    """The agent has left; choose another."""

    code = "agent-inactive"


class IdentityLinkedError(RuleError):
    """This identity is another agent's; unlink it there first."""

    code = "identity-linked"


class SectorInactiveError(RuleError):
    """The sector was closed; choose another."""

    code = "sector-inactive"


class TooManyLabelsError(RuleError):
    """It has as many labels as a conversation may have; remove one first."""

    code = "too-many-labels"


class TooManyAttributesError(RuleError):
    """It has as many attributes as a conversation may have; take one away first."""

    code = "too-many-attributes"


class AttributeOfWrongTypeError(RuleError):
    """The attribute was defined with a type that this value does not fit."""

    code = "attribute-of-wrong-type"


class ContactAlreadyErasedError(RuleError):
    """The contact was erased; nothing more can be recorded about them."""

    code = "contact-already-erased"


class TooManyBulkJobsError(RuleError):
    """Too many bulk actions are not over yet in this workspace; wait for one, or cancel one."""

    code = "too-many-bulk-jobs"


class VersionConflictError(DomainError):
    """It has changed since the version you named; read it again and decide anew."""

    code = "version-conflict"

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(f"You named version {expected}; it is at version {actual}. Read what changed and decide anew.")
        self.expected = expected
        self.actual = actual
        self.since: list[dict[str, object]] = []
        """What happened since, where somebody has looked it up."""


class IdempotencyKeyReusedError(DomainError):
    """This idempotency key came before with another request; use a new key for a new request."""

    code = "idempotency-key-reused"
