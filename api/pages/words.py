"""What the API's codes are called on pages: events, surfaces, presences, causes, kinds of messages.

Invariant: every code of the domain has a name here; `tests/unit/test_page_words.py` walks them all.
"""

from api.pages.page import Page
from api.pages.texts import N_

Names = dict[str, dict[str, str]]
"""What sectors and agents are called, by id."""

EVENT_NAMES = {
    "conversation-opened.v1": N_("Opened"),
    "conversation-handed-off-to-bot.v1": N_("Handed off to a bot"),
    "conversation-handed-off-by-bot.v1": N_("Handed off by the bot"),
    "conversation-marked-pending.v1": N_("Put back into the queue"),
    "conversation-assumed.v1": N_("Assumed"),
    "conversation-transferred.v1": N_("Transferred"),
    "conversation-finalized-from-inbox.v1": N_("Finalized from the inbox"),
    "conversation-finalized-from-listing.v1": N_("Finalized from the listing"),
    "conversation-finalized-automatically.v1": N_("Finalized automatically"),
    "conversation-reopened.v1": N_("Reopened"),
    "message-received.v1": N_("Message received"),
    "message-sent.v1": N_("Message sent"),
    "note-added.v1": N_("Note added"),
    "label-added.v1": N_("Label added"),
    "label-removed.v1": N_("Label removed"),
    "priority-changed.v1": N_("Priority changed"),
    "attribute-set.v1": N_("Attribute set"),
    "contact-reassigned.v1": N_("Reassigned to another contact"),
    "contact-registered.v1": N_("Contact registered"),
    "contact-details-changed.v1": N_("Contact's details changed"),
    "contact-erased.v1": N_("Contact erased"),
    "workspace-created.v1": N_("Workspace created"),
    "sector-created.v1": N_("Sector created"),
    "sector-renamed.v1": N_("Sector renamed"),
    "sector-deactivated.v1": N_("Sector closed"),
    "agent-registered.v1": N_("Agent registered"),
    "agent-role-changed.v1": N_("Agent's role changed"),
    "agent-joined-sector.v1": N_("Agent joined a sector"),
    "agent-left-sector.v1": N_("Agent left a sector"),
    "agent-deactivated.v1": N_("Agent deactivated"),
    "role-defined.v1": N_("Role defined"),
    "token-issued.v1": N_("Access token issued"),
    "token-narrowed.v1": N_("Access token narrowed"),
    "token-revoked.v1": N_("Access token revoked"),
    "identity-linked.v1": N_("Identity linked"),
    "identity-unlinked.v1": N_("Identity unlinked"),
    "attribute-defined.v1": N_("Attribute defined"),
    "attribute-retired.v1": N_("Attribute retired"),
    "view-saved.v1": N_("View saved"),
    "view-removed.v1": N_("View removed"),
}
"""By topic."""
SURFACE_NAMES = {
    "inbox": N_("from the inbox"),
    "listing": N_("from the listing"),
    "bulk": N_("by a bulk action"),
    "bot": N_("by a bot"),
    "channel": N_("through the channel"),
    "automation": N_("by an automation"),
    "api": N_("through the API"),
    "import": N_("by an import"),
}
PRESENCE_NAMES = {"online": N_("online"), "away": N_("away"), "offline": N_("offline")}
ACTOR_NAMES = {
    "agent": N_("Agent"),
    "bot": N_("Bot"),
    "contact": N_("Contact"),
    "system": N_("System"),
    "integration": N_("Integration"),
}
CAUSE_NAMES = {
    "bot": N_("the bot ended it"),
    "inactivity": N_("nobody wrote any more"),
    "automation": N_("an automation ended it"),
    "contact": N_("the contact ended it"),
    "import": N_("it was imported so"),
}
KIND_NAMES = {
    "text": N_("Text"),
    "image": N_("Image"),
    "audio": N_("Audio"),
    "video": N_("Video"),
    "document": N_("Document"),
    "location": N_("Location"),
    "contact_card": N_("Contact card"),
    "template": N_("Template"),
    "other": N_("Other"),
}


def actor_name(page: Page, names: Names, actor: dict[str, str] | str | None) -> str:
    """Who did something: ``actor`` as the API tells it, or ``kind:id``."""
    if not actor:
        return ""
    if isinstance(actor, str):
        kind, _, id_ = actor.partition(":")
    else:
        kind, id_ = actor["kind"], actor["id"]
    match kind:
        case "agent":
            return names["agent"].get(id_, id_)
        case "contact":
            return page.text("the contact")
        case "system":
            return page.text("the system")
        case _:
            return id_
