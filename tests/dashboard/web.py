"""A browser's side of the dashboard without a browser: cookies, forms, and what a page says."""

from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import requests

DEADLINE_S = 60.0
VOID = frozenset(("br", "col", "hr", "img", "input", "link", "meta", "path", "rect", "circle"))


class Element:
    """An element of a page: its attributes, and the text in it."""

    def __init__(self, tag: str, attributes: dict[str, str]):
        self.tag, self.attributes = tag, attributes
        self.text = ""

    def __getitem__(self, name: str) -> str:
        return self.attributes.get(name, "")

    @property
    def classes(self) -> list[str]:
        return self["class"].split()


class Document(HTMLParser):
    """All elements of a page, in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)
        self.close()
        assert not self._open, [one.tag for one in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1].tag == tag, (tag, [one.tag for one in self._open])
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str, **wanted: str) -> list[Element]:
        return [
            one
            for one in self.elements
            if one.tag == tag
            and all(
                value in one.classes if name == "cls" else one[name.replace("_", "-")] == value
                for name, value in wanted.items()
            )
        ]

    def one(self, tag: str, **wanted: str) -> Element:
        found = self.all(tag, **wanted)
        assert len(found) == 1, (tag, wanted, len(found))
        return found[0]


class Signed:
    """A browser's session."""

    def __init__(self, url: str, token: str = ""):
        self.url = url
        self.http = requests.Session()
        if token:
            answer = self.login(token)
            assert answer.status_code == 303, answer.text

    def login(self, token: str, there: str = "", **headers: str) -> requests.Response:
        return self.http.post(
            self.url + "/login",
            data={"token": token, "next": there},
            headers={"Origin": self.url, **headers},
            allow_redirects=False,
            timeout=DEADLINE_S,
        )

    def get(self, path: str, **headers: str) -> requests.Response:
        return self.http.get(
            urljoin(self.url, path), headers=headers, allow_redirects=False, timeout=DEADLINE_S
        )

    def page(self, path: str) -> Document:
        """Return a page that is there."""
        answer = self.get(path)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[:2000])
        return Document(answer.text)

    def csrf(self) -> str:
        return self.page("/").one("meta", name="csrf")["content"]

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
        """Call the API as the pages' script does, but for what ``headers`` says."""
        given = {"X-CSRF-Token": self.csrf(), "Origin": self.url, **headers}
        return self.http.request(
            method,
            self.url + path,
            json=body,
            headers={key: value for key, value in given.items() if value},
            timeout=DEADLINE_S,
        )
