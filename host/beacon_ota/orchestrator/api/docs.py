"""``/docs``: the API's description, readable without anything from elsewhere."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

_PAGE = Path(__file__).with_name("docs.html")


@router.get("/docs")
async def docs() -> Response:
    """Return the page; it reads ``/api/openapi.json``."""
    return Response(_page(), headers={"content-security-policy": _policy()}, media_type="text/html")


@cache
def _page() -> str:
    return _PAGE.read_text("utf-8")


@cache
def _policy() -> str:
    """Return a policy under which the page's own script and style run, and no others."""
    return (
        f"default-src 'none'; script-src {_hash('script')}; style-src {_hash('style')}; "
        "connect-src 'self'; img-src 'self' data:; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )


def _hash(tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", _page(), re.DOTALL)
    assert found is not None
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
