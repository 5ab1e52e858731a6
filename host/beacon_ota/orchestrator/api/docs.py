"""``/docs``: shows the API's description, without loading anything from other hosts."""

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
async def show_api_docs() -> Response:
    """Return the page, which reads ``/api/openapi.json``."""
    return Response(
        _read_page(), headers={"content-security-policy": _content_policy()}, media_type="text/html"
    )


@cache
def _read_page() -> str:
    return _PAGE.read_text("utf-8")


@cache
def _content_policy() -> str:
    """Return a policy that allows the page's own script and style, and no others."""
    return (
        f"default-src 'none'; script-src {_inline_hash('script')}; "
        f"style-src {_inline_hash('style')}; connect-src 'self'; img-src 'self' data:; "
        "form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )


def _inline_hash(tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", _read_page(), re.DOTALL)
    assert found is not None
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
