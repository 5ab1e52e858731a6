"""``/docs``: the API's description, readable without anything from elsewhere."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

router = APIRouter(include_in_schema=False)

_PAGE = Path(__file__).with_name("docs.html")


@router.get("/docs")
async def docs() -> FileResponse:
    """Return the page; it reads ``/api/openapi.json``."""
    return FileResponse(_PAGE, media_type="text/html")
