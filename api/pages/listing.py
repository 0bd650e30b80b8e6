"""The first page: the listing."""

from starlette.responses import Response

from api.pages.page import Here, page_router

router = page_router()


@router.get("/")
async def listing(page: Here) -> Response:
    """The listing."""
    found = await page.get("/v1/conversations")
    return page.render("listing.html", items=found["items"])
