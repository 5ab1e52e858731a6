"""One try at a webhook, with real sockets: a host's addresses are tried one after the other."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from beacon_ota.orchestrator.webhooks import sender
from beacon_ota.orchestrator.webhooks.sender import DeliveryOutcome, send_webhook

SECRET = sender.new_secret()


class Receiver:
    """Answers 204 at an address of this machine, and counts."""

    def __init__(self, address: str, port: int = 0, answer: bytes = b"HTTP/1.1 204 OK\r\n\r\n"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.create_server((address, port), family=family)
        self.port: int = self.socket.getsockname()[1]
        self.count = 0
        self.answer = answer
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self.socket.accept()
                with connection:
                    self.count += 1
                    connection.recv(65536)
                    connection.sendall(self.answer)

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@contextlib.contextmanager
def silent(address: str, port: int) -> Iterator[None]:
    """A listener whose queue is full: who connects hears nothing."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect((address, port))
        yield


@pytest.fixture
def resolve(monkeypatch):
    """Have the name ``receiver.test`` lead to addresses; returns who is looked up how often."""
    asked: list[str] = []

    def use(*addresses: str) -> list[str]:
        real = socket.getaddrinfo

        def found(host, port, *args, **options):
            asked.append(host)
            if host != "receiver.test":
                return real(host, port, *args, **options)
            return [real(address, port, *args, **options)[0] for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", found)
        return asked

    return use


def post(port: int, *, local: bool = True, scheme: str = "http") -> DeliveryOutcome:
    url = f"{scheme}://receiver.test:{port}/in"
    return asyncio.run(send_webhook(url, SECRET, "msg_1", 1_700_000_000, "{}", local=local))


@pytest.mark.parametrize("dead", ["::1", "127.0.0.2"])
def test_where_nobody_listens_the_next_address_is_tried(resolve, dead):
    asked = resolve(dead, "127.0.0.1")
    with Receiver("127.0.0.1") as receiver:
        assert post(receiver.port)[:2] == (204, None)
        assert receiver.count == 1
    assert asked.count("receiver.test") == 1


def test_where_nobody_answers_the_next_address_is_tried(resolve, monkeypatch):
    """Each address has its share of the time, so the last one has enough."""
    monkeypatch.setattr(sender, "TIMEOUT_S", 10.0)
    resolve("127.0.0.2", "127.0.0.1")
    with Receiver("127.0.0.1") as receiver, silent("127.0.0.2", receiver.port):
        assert post(receiver.port)[:2] == (204, None)


def test_the_first_that_answers_is_the_only_one(resolve):
    resolve("127.0.0.1", "127.0.0.2", "127.0.0.1")
    with Receiver("127.0.0.1") as first, Receiver("127.0.0.2", first.port) as second:
        assert post(first.port).ok
        assert (first.count, second.count) == (1, 0)


def test_what_was_sent_is_not_sent_to_another_address(resolve):
    """The receiver may have it, though its answer is of no use."""
    resolve("127.0.0.1", "127.0.0.2")
    with Receiver("127.0.0.1", answer=b"") as first, Receiver("127.0.0.2", first.port) as second:
        assert post(first.port).error == "answer"
        assert (first.count, second.count) == (1, 0)


def test_an_address_where_tls_fails_is_not_the_last(resolve):
    resolve("127.0.0.1", "127.0.0.2")
    with Receiver("127.0.0.1") as first, Receiver("127.0.0.2", first.port) as second:
        assert post(first.port, scheme="https").error in ("tls", "connect")
        assert (first.count, second.count) == (1, 1)


def test_nobody_anywhere(resolve):
    resolve("::1", "127.0.0.2", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        assert post(taken.getsockname()[1]).error == "connect"


def test_refused_addresses_are_left_out(resolve):
    """Nobody connects to them; the others are tried all the same."""
    resolve("127.0.0.2", "169.254.169.254", "127.0.0.1")
    with Receiver("127.0.0.1") as receiver, Receiver("127.0.0.2", receiver.port) as other:
        assert post(receiver.port, local=False).error == "webhook_address"
        assert (receiver.count, other.count) == (0, 0)
        resolve("169.254.169.254", "fd00:ec2::254", "127.0.0.1")
        assert post(receiver.port)[:2] == (204, None)


def test_many_addresses_have_a_bound(resolve):
    resolve(*(f"127.0.1.{number}" for number in range(1, 250)), "127.0.0.1")
    with Receiver("127.0.0.1") as receiver:
        assert post(receiver.port).error == "connect"
        assert receiver.count == 0
