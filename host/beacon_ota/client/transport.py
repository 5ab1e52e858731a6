"""Calls to the orchestrator over HTTP, and the named errors that refusals become."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from beacon_ota.client.configuration import load_configuration
from beacon_ota.errors import (
    BeaconOtaError,
    DeniedError,
    InputError,
    ReachError,
    UsageError,
)

DEFAULT_URL = "http://127.0.0.1:8080"
TIMEOUT_S = (5.0, 60.0)  # to connect, and between two bytes of an answer


class Transport:
    """A session with one orchestrator.

    Args:
        url: of the orchestrator.
        token: bearer token.
        ca: PEM file that the server's certificate is to be verified with.
        timeout_s: seconds to connect, and seconds in which the server may say nothing.

    Raises:
        UsageError: ``config_file``, ``ca_missing``, ``url_syntax``.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        ca: Path | None = None,
        timeout_s: tuple[float, float] = TIMEOUT_S,
    ):
        given = {} if url and token else load_configuration()
        self.url = _check_url(url or given.get("url") or DEFAULT_URL)
        self.token = token or given.get("token")
        self._session = requests.Session()
        self._session.trust_env = False
        self._timeout_s = timeout_s
        if pinned := ca or given.get("ca") or os.environ.get("BEACON_OTA_CA"):
            if not Path(pinned).is_file():
                raise UsageError("ca_missing", f"there is no certificate {pinned}")
            self._session.verify = str(pinned)
        if self.token:
            self._session.headers["Authorization"] = f"Bearer {self.token}"

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Make a call; returns the decoded answer, None when it is empty.

        Raises:
            ReachError: ``unreachable``, or what the server says for 5xx.
            DeniedError: 401 and 403. InputError: 404, 413, 415, 422. UsageError: 409, 410.
        """
        answer = self.request(method, path, **options)
        if answer.status_code == 204 or not answer.content:
            if method == "GET":  # an orchestrator always has something to say to these
                raise self._foreign_answer()
            return None
        try:
            return answer.json()
        except ValueError:
            raise self._foreign_answer() from None

    def _foreign_answer(self) -> ReachError:
        return ReachError("not_an_orchestrator", f"{self.url} answers, but not as an orchestrator")

    @contextmanager
    def stream_response(self, path: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        """Open an answer whose body is read piece by piece."""
        with self.request("GET", path, headers=headers, stream=True) as answer:
            yield answer

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", self._timeout_s)
        try:
            answer = self._session.request(
                method, self.url + path, allow_redirects=False, **options
            )
        except requests.RequestException as error:
            raise ReachError(
                "unreachable",
                f"cannot reach {self.url}: {describe_failure(error)}",
                found=self.url,
            ) from None
        if answer.is_redirect:  # followed, a POST would become a GET, and the token travel on
            raise _redirection_error(answer, path)
        if answer.status_code >= 400:
            raise self._explain_token(error_from_response(answer))
        return answer

    def _explain_token(self, error: BeaconOtaError) -> BeaconOtaError:
        """Say how a token is named, where one is missing or wrong."""
        if error.code == "token_missing" and not self.token:
            error.message = "this needs a token: --token, or BEACON_OTA_TOKEN"
            error.args = (error.message,)
        return error


def error_from_response(answer: requests.Response) -> BeaconOtaError:
    """Return the error that an answer of 400 and above stands for."""
    try:
        document = answer.json()
        code, detail = str(document["code"]), str(document["detail"])
    except (ValueError, KeyError, TypeError):
        return _foreign_error(answer)
    kind: type[BeaconOtaError]
    if answer.status_code in (401, 403, 429):
        kind = DeniedError
    elif answer.status_code in (409, 410):
        kind = UsageError
    elif answer.status_code >= 500:
        kind = ReachError
    else:
        kind = InputError
    return kind(code, detail, found=document.get("found"), expected=document.get("expected"))


def _redirection_error(answer: requests.Response, path: str) -> BeaconOtaError:
    """Return the error of a redirection: the address that the answer names."""
    there = "".join(filter(str.isprintable, answer.headers.get("location", "")))[:200]
    inside = there.partition("?")[0].removesuffix(path)
    return ReachError(
        "redirected",
        f"{answer.url} answers that the orchestrator is at another address: name that one",
        found=f"{answer.status_code} to {there}",
        expected=f"--url {inside}" if inside.startswith("http") else None,
    )


_PROXY = {
    401: "asks for a login of its own",
    403: "forbids it",
    404: "does not know this address: is the path of --url right?",
    413: "takes no body as large as this: it needs a higher limit (nginx: client_max_body_size)",
    429: "says that there are too many requests",
    502: "gets no answer from the orchestrator behind it: is it running?",
    503: "says that the orchestrator behind it is not available",
    504: "gets no answer in time from the orchestrator behind it",
}


def _foreign_error(answer: requests.Response) -> BeaconOtaError:
    """Return the error of an answer by a proxy or another server, not the orchestrator.

    The page that it sent is for browsers; its name and its status are shown here.
    """
    status = answer.status_code
    server = "".join(filter(str.isprintable, answer.headers.get("server", "")))[:40]
    who = f"a proxy ({server})" if server else "a proxy, or another server,"
    if status in _PROXY:
        code = "proxy_refused" if status < 500 else "proxy_unavailable"
        detail = f"{who} in front of the orchestrator {_PROXY[status]}"
    elif status == 400 and b"plain HTTP request was sent" in answer.content:
        code = "not_an_orchestrator"
        detail = f"{answer.url} is a port for TLS: name it with https://"
    else:
        code = "not_an_orchestrator"
        detail = f"{answer.url} answers {status}, but not as an orchestrator"
    kind = DeniedError if status in (401, 403, 429) else ReachError
    return kind(code, detail, found=f"{status} from {answer.url}")


def _check_url(text: str) -> str:
    """Return the address of an orchestrator without a slash at its end (UsageError)."""
    parts = urlsplit(text.strip())
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        whole = "://" not in text
        raise UsageError(
            "url_syntax",
            f"{text} is no address of an orchestrator" + ": it begins with http://" * whole,
            found=text,
            expected=f"http://{text.strip()}" if whole else "http://… or https://…",
        )
    return text.strip().rstrip("/")


# What OpenSSL says of an answer that is not TLS.
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL")


_CLOSED = ("RemoteDisconnected", "ConnectionResetError", "BadStatusLine")


def describe_failure(error: requests.RequestException) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        if any(word in str(error).upper().replace(" ", "_") for word in _NO_TLS):
            return "what answers there speaks no TLS: is it http:// in place of https://?"
        return (
            "its certificate does not verify; BEACON_OTA_CA names the file of a private authority"
        )
    if isinstance(error, requests.ConnectTimeout | requests.ReadTimeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        if any(word in str(error) for word in _CLOSED):
            return "what answers there closes the connection: is it https:// in place of http://?"
        return "nobody answers there"
    return str(error)
