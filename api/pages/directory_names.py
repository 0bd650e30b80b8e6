"""What sectors and agents are called."""

import asyncio

from api.pages.page import Page


async def names(page: Page) -> dict[str, dict[str, str]]:
    """Names of sectors and agents by id."""
    sectors, agents = await asyncio.gather(page.get("/v1/sectors"), page.get("/v1/agents"))
    return {
        "sector": {each["id"]: each["name"] for each in sectors["items"]},
        "agent": {each["id"]: each["name"] for each in agents["items"]},
    }
