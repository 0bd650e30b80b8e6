"""What pages say of errors, by status and by the API's stable codes.

Invariant: every refusal of the domain has a sentence here; `tests/unit/test_pages.py` walks them all.
"""


def N_(message: str) -> str:  # noqa: N802  # gettext's own name for: collect this, translate it where it is shown
    """``message``, to be translated later."""
    return message


WHAT_WENT_WRONG = N_("Something went wrong")
STATUSES = {
    401: N_("Your session is over"),
    403: N_("You may not do this"),
    404: N_("This is not there"),
    405: N_("This cannot be done here"),
    409: N_("This is not possible now"),
    412: N_("It has changed in the meantime"),
    413: N_("This is too large"),
    422: N_("Something is not right in what was sent"),
    500: WHAT_WENT_WRONG,
    503: N_("Not available for the moment"),
}
"""Titles of the pages that tell of an error."""

REFUSALS = {
    "unauthenticated": N_("Sign in again in another tab, then send this page once more: what you typed stays."),
    "other-site": N_("This form did not come from a page of yours here. Open the page again and send it from there."),
    "not-found": N_("It does not exist, or you may not see it."),
    "conversation-not-found": N_("This conversation does not exist, or you may not see it."),
    "contact-not-found": N_("This contact does not exist, or you may not see them."),
    "sector-not-found": N_("There is no such sector."),
    "agent-not-found": N_("There is no such agent."),
    "role-not-found": N_("There is no such role."),
    "token-not-found": N_("There is no such access token."),
    "identity-not-found": N_("There is no such identity."),
    "attribute-not-found": N_("There is no such attribute; define it first."),
    "view-not-found": N_("There is no such view, or it is not yours."),
    "bulk-job-not-found": N_("There is no such bulk action, or it is somebody else's."),
    "proof-not-found": N_("There is no such event in the verifiable log."),
    "permission-denied": N_("Your role does not allow this; an administrator can grant it."),
    "invalid-command": N_("The request contradicts itself."),
    "refused": N_("A rule refuses this as things stand."),
    "role-built-in": N_("A built-in role stays as it is."),
    "already-exists": N_("This exists already."),
    "conversation-already-finalized": N_("The conversation is finalized; reopen it first."),
    "conversation-not-finalized": N_("The conversation is open: there is nothing to reopen."),
    "conversation-already-pending": N_("It is pending in another sector; transfer it instead."),
    "conversation-already-assumed": N_("Another agent has it; transfer it instead."),
    "conversation-with-bot": N_("A bot has it; assume it first."),
    "conversation-not-with-bot": N_("No bot has it."),
    "bot-not-in-charge": N_("A person or another bot has taken over."),
    "agent-not-in-sector": N_("This agent does not serve in that sector."),
    "agent-inactive": N_("This agent has left; choose another."),
    "identity-linked": N_("This identity is another agent's; unlink it there first."),
    "sector-inactive": N_("The sector was closed; choose another."),
    "too-many-labels": N_("It has as many labels as a conversation may have; remove one first."),
    "too-many-attributes": N_("It has as many attributes as a conversation may have; take one away first."),
    "attribute-of-wrong-type": N_("The value does not fit the attribute's type."),
    "contact-already-erased": N_("The contact was erased; nothing more can be recorded about them."),
    "too-many-bulk-jobs": N_("Too many bulk actions are not over yet; wait for one, or cancel one."),
    "version-conflict": N_("Somebody changed it while you looked; open it again and decide anew."),
    "idempotency-key-reused": N_("This was sent before with other contents; open the page again."),
    "invalid-request": N_("Check what is marked, and send it again."),
    "too-large": N_("Send less at a time."),
    "method-not-allowed": N_("Open the page again and go on from there."),
    "unavailable": N_("The page tries again by itself in a few seconds."),
    "overloaded": N_("Too much is being asked at once; the page tries again by itself in a few seconds."),
    "outcome-unknown": N_("It may have been done or not: look before you do it again."),
    "query-too-slow": N_("This takes longer than a query may; narrow the filter or the period."),
    "internal-error": N_("It is our fault, and it was written down. Try again."),
}
"""By the code of a problem document."""

COME_AGAIN = {"unavailable", "overloaded"}
"""Refusals that soon are none any more: a page that only shows something tries again by itself."""
