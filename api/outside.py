"""The outside issuer as the settings have it: whose access tokens the API takes, and where people sign in to the pages.

Invariant: each is there only where it was set; an ID token is never taken for an access token, nor the other way round.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from adapters.oidc import Keys, Trust, Verifier
from adapters.oidc_sign_in import Client, SignIn
from api.settings import Settings, oidc_client_secret


@asynccontextmanager
async def issuer_of(settings: Settings, issuer: str) -> AsyncIterator[tuple[Verifier | None, SignIn | None]]:
    """What tells its access tokens from others, and what signs people in there; None for what was not set."""
    trust = Trust(
        issuer=issuer,
        audience=settings.oidc_audience or "",
        jwks_url=settings.oidc_jwks_url,
        algorithms=frozenset(settings.oidc_algorithms.split(",")),
        token_type=settings.oidc_token_type,
        subject_claim=settings.oidc_subject_claim,
        workspace_claim=settings.oidc_workspace_claim,
        workspace=settings.oidc_workspace,
        leeway_seconds=settings.oidc_leeway_seconds,
        longest_life_seconds=settings.oidc_longest_life_seconds,
        not_before_required=settings.oidc_not_before_required,
    )
    async with Keys(trust) as keys:
        verifier = Verifier(trust, keys) if settings.oidc_audience is not None else None
        if settings.oidc_client_id is None:
            yield verifier, None
            return
        client = Client(settings.oidc_client_id, oidc_client_secret(settings), (settings.public_url or "").rstrip("/"))
        of_ids = id_tokens(trust, client)
        async with SignIn(client, of_ids, Verifier(of_ids, keys)) as sign_in:
            yield verifier, sign_in


def id_tokens(trust: Trust, client: Client) -> Trust:
    """What is asked of the issuer's ID tokens: for us alone; many issuers leave their type and `nbf` out."""
    return replace(trust, audience=client.id, token_type="JWT", type_required=False, not_before_required=False)  # noqa: S106
