"""A saved view: a filter of the listing with its sort and columns, kept under a name.

Invariant: a private view is there for its owner only; whose it is never changes.
"""

from dataclasses import dataclass, replace
from typing import assert_never

from domain.commands import ChangeView, RemoveView, SaveView, ViewCommand
from domain.errors import AlreadyExistsError, PermissionDeniedError, ViewNotFoundError
from domain.events import Actor, Event, ViewContents, ViewRemoved, ViewSaved
from domain.permissions import Caller, Permission, Scope


@dataclass(frozen=True, slots=True)
class View:
    """What must be remembered of a view to decide."""

    owner: Actor
    shared: bool
    sort: str
    descending: bool
    columns: tuple[str, ...]
    contents: ViewContents
    removed: bool = False


def authorize(command: ViewCommand, state: View | None, caller: Caller) -> None:
    """Refuse what is not the caller's: a private view does not exist for others, a shared one is not theirs to change.

    Whoever manages the whole directory may change and remove the shared views of others.
    """
    if isinstance(command, SaveView):
        if command.owner != caller.actor:
            raise PermissionDeniedError("You may keep views of your own only.")
        if state is not None and state.owner != caller.actor:
            raise AlreadyExistsError
    elif state is None or (state.owner != caller.actor and (state.removed or not state.shared)):
        raise ViewNotFoundError
    elif state.owner != caller.actor and caller.scope(Permission.MANAGE_DIRECTORY) is not Scope.ALL:
        raise PermissionDeniedError(
            f"It is another's: changing it needs the permission '{Permission.MANAGE_DIRECTORY}' for all."
        )


def decide(command: SaveView | ChangeView | RemoveView, state: View | None) -> list[Event]:
    """The events that ``command`` causes; none where it is already so."""
    match command:
        case SaveView():
            saved = _saved(command, command.owner)
            if state is None:
                return [saved]
            if state == evolve(None, saved):
                return []
            raise AlreadyExistsError
        case ChangeView():
            if state is None or state.removed:
                raise ViewNotFoundError
            saved = _saved(command, state.owner)
            return [] if state == evolve(None, saved) else [saved]
        case RemoveView():
            if state is None:
                raise ViewNotFoundError
            return [] if state.removed else [ViewRemoved()]
        case _:
            assert_never(command)


def evolve(state: View | None, event: ViewSaved | ViewRemoved) -> View:
    """The view after ``event``."""
    match event:
        case ViewSaved():
            return View(
                owner=event.owner,
                shared=event.shared,
                sort=event.sort,
                descending=event.descending,
                columns=event.columns,
                contents=event.personal,
            )
        case ViewRemoved():
            assert state is not None, "the log holds an event before the one that creates its stream"
            return replace(state, removed=True)
        case _:
            assert_never(event)


def _saved(command: SaveView | ChangeView, owner: Actor) -> ViewSaved:
    return ViewSaved(
        owner=owner,
        shared=command.shared,
        sort=command.sort,
        descending=command.descending,
        columns=command.columns,
        personal=command.contents,
    )
