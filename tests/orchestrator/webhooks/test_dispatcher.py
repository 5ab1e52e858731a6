"""What happens is told to receivers: signed, in order, again until they have it, or visibly not."""

import base64
import hashlib
import hmac
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError, DeniedError, InputError, UsageError
from beacon_ota.orchestrator.db.tables import events
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.webhooks.dispatcher import PAUSES_S, matches_kind
from beacon_ota.orchestrator.webhooks.sender import parse_target, sign_message
from tests.orchestrator.world import COMMAND, Local, ManualClock, Server, environment, until, upload

WAIT_S = 60.0


class Receiver:
    """A system that is told things: keeps what came, and answers as it is told to."""

    def __init__(self) -> None:
        self.came: list[tuple[dict[str, str], str]] = []
        self.answer: Callable[[], int] = lambda: 204
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                headers = {key.lower(): value for key, value in self.headers.items()}
                outer.came.append((headers, body))
                status = outer.answer()
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", f"{outer.url}elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/in?team=beacons&q="
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def kinds(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.came]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


class Clock(ManualClock):
    """Stands still; what waits for it looks again soon."""

    def real(self, seconds: float) -> float:
        return min(seconds, 0.1)


@pytest.fixture
def local(tmp_path) -> Iterator[Local]:
    with Local(tmp_path / "data", Clock(), webhook_local=True) as local:
        yield local


def write(local: Local, work: Callable[[Any], Any]) -> Any:
    async def done() -> Any:
        return await local.service.db.write(work)

    return local.call(done())


def happen(local: Local, kind: str, subject: str = "thing", **data: Any) -> None:
    """Have something happen, as the engine does."""

    def work(conn: Any) -> Any:
        return events.add(conn, local.clock.now(), kind, subject, data)

    event = write(local, work)
    local.loop.call_soon_threadsafe(local.service.hub.publish, event)


def hook(admin: Client, webhook_id: str) -> dict[str, Any]:
    return next(one for one in admin.list_webhooks() if one["webhook_id"] == webhook_id)


def counted(admin: Client, webhook_id: str, **states: int) -> Callable[[], bool]:
    return lambda: states.items() <= hook(admin, webhook_id)["deliveries"].items()


# ---- delivery ----


def test_a_halt_is_told_and_signed(local, receiver, tmp_path):
    admin = local.admin()
    made = admin.create_webhook("chat", receiver.url)
    firmware = upload(admin, "1.0.0", tmp_path)
    rollout = admin.create_rollout(firmware["firmware_id"], name="first")["rollout_id"]
    admin.post_rollout_action(rollout, "halt", "smells of smoke")
    until(lambda: receiver.came, deadline_s=WAIT_S)
    headers, body = receiver.came[0]
    key = base64.b64decode(made["secret"].removeprefix("whsec_"))
    stamp = headers["webhook-timestamp"]
    signed = f"{headers['webhook-id']}.{stamp}.{body}".encode()
    mac = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{mac}"
    assert int(stamp) == int(local.clock.now())
    told = json.loads(body)
    assert told["type"] == "rollout.halted" and told["data"]["subject"] == rollout
    assert "smells of smoke" in body and "first" not in receiver.kinds
    until(counted(admin, made["webhook_id"], delivered=1, pending=0), deadline_s=WAIT_S)
    row = admin.get_webhook(made["webhook_id"])["log"][0]
    assert (row["state"], row["status"], row["tries"]) == ("delivered", 204, 1)
    assert row["body"] == told
    assert "secret" not in json.dumps(admin.list_webhooks())
    assert made["secret"] not in json.dumps(admin.list_audit_entries())


def test_only_what_was_asked_for_and_in_order(local, receiver):
    admin = local.admin()
    made = admin.create_webhook("all of rollouts", receiver.url, ["rollout.", "beacon.removed"])
    wanted = []
    for number in range(30):
        happen(local, "rollout.paused", str(number))
        happen(local, "attempt.success", "not told")
        wanted.append(str(number))
    until(counted(admin, made["webhook_id"], delivered=30), deadline_s=WAIT_S)
    assert [json.loads(body)["data"]["subject"] for _, body in receiver.came] == wanted
    assert len({headers["webhook-id"] for headers, _ in receiver.came}) == 30


def test_again_until_it_arrives(local, receiver):
    admin = local.admin()
    answers = [500, 302, 404]
    receiver.answer = lambda: answers.pop(0) if answers else 200
    made = admin.create_webhook("slow to wake", receiver.url, ["rollout.halted"])
    happen(local, "rollout.halted", "r1")
    until(lambda: len(receiver.came) == 1, deadline_s=WAIT_S)
    for count, pause in ((2, PAUSES_S[0]), (3, PAUSES_S[1]), (4, PAUSES_S[2])):

        def waits(tries=count - 1) -> bool:
            row = admin.get_webhook(made["webhook_id"])["log"][0]
            return row["tries"] == tries and row["status"] is not None

        until(waits, deadline_s=WAIT_S)
        shown = hook(admin, made["webhook_id"])
        assert shown["failing_since"] and shown["deliveries"]["pending"] == 1
        local.clock.at += pause * 0.5
        assert len(receiver.came) == count - 1
        local.clock.at += pause * 0.7
        until(lambda count=count: len(receiver.came) == count, deadline_s=WAIT_S)
    until(counted(admin, made["webhook_id"], delivered=1, pending=0), deadline_s=WAIT_S)
    assert hook(admin, made["webhook_id"])["failing_since"] is None
    ids = {headers["webhook-id"] for headers, _ in receiver.came}
    assert len(ids) == 1  # a receiver can tell that it is the same
    assert all("elsewhere" not in str(headers) for headers, _ in receiver.came)
    stamps = [int(headers["webhook-timestamp"]) for headers, _ in receiver.came]
    assert stamps == sorted(set(stamps))


def test_a_clock_that_is_set_back_puts_nothing_off(local, receiver):
    """What failed a moment ago is not tried again in a year, nor what has happened since."""
    admin = local.admin()
    receiver.answer = lambda: 503
    made = admin.create_webhook("chat", receiver.url, ["thing."])["webhook_id"]
    happen(local, "thing.before")
    until(lambda: hook(admin, made)["failing_since"], what="a try that failed")
    local.clock.at -= 365 * 86400
    receiver.answer = lambda: 204
    happen(local, "thing.since")
    until(counted(admin, made, delivered=2), what="both to be delivered")
    assert receiver.kinds.count("thing.since") == 1


def test_given_up_visibly_and_taken_up_again(local, receiver):
    admin = local.admin()
    receiver.answer = lambda: 503
    made = admin.create_webhook("gone", receiver.url, ["rollout.halted"])
    webhook_id = made["webhook_id"]
    happen(local, "rollout.halted", "r1")

    def over() -> bool:
        local.clock.at += 7200.0
        return hook(admin, webhook_id)["deliveries"]["given_up"] == 1

    until(over, deadline_s=2 * WAIT_S)
    assert len(receiver.came) == len(PAUSES_S) + 1
    event = admin.list_latest_events(1)[0]
    assert event["kind"] == "webhook.given_up" and event["data"]["kind"] == "rollout.halted"
    receiver.answer = lambda: 200
    delivery = admin.get_webhook(webhook_id)["log"][0]
    assert delivery["error"] == "http" and delivery["next_at"] is None
    admin.retry_delivery(webhook_id, delivery["delivery_id"])
    until(counted(admin, webhook_id, delivered=1, given_up=0), deadline_s=WAIT_S)
    with pytest.raises(BeaconOtaError) as caught:
        admin.retry_delivery(webhook_id, delivery["delivery_id"])
    assert caught.value.code == "delivery_unknown"


def test_who_is_gone_for_good_is_left_alone(local, receiver):
    admin = local.admin()
    receiver.answer = lambda: 410
    made = admin.create_webhook("moved", receiver.url, ["rollout.halted"])
    happen(local, "rollout.halted", "r1")
    until(lambda: not hook(admin, made["webhook_id"])["enabled"], deadline_s=WAIT_S)
    happen(local, "rollout.halted", "r2")
    receiver.answer = lambda: 200
    with pytest.raises(UsageError):
        admin.post_webhook_action(made["webhook_id"], "test")
    admin.change_webhook(made["webhook_id"], enabled=True)
    happen(local, "rollout.halted", "r3")
    until(lambda: len(receiver.came) == 2, deadline_s=WAIT_S)
    assert json.loads(receiver.came[1][1])["data"]["subject"] == "r3"


def test_one_that_hangs_holds_up_nobody_else(local, receiver):
    admin = local.admin()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        made = admin.create_webhook(
            "mute", f"http://127.0.0.1:{mute.getsockname()[1]}/", ["rollout."]
        )
        admin.create_webhook("chat", receiver.url, ["rollout."])
        happen(local, "rollout.halted", "r1")
        happen(local, "rollout.resumed", "r1")
        until(lambda: len(receiver.came) == 2, deadline_s=WAIT_S)
        assert hook(admin, made["webhook_id"])["deliveries"]["pending"] == 2


def test_nonsense_for_an_answer_is_no_answer(local):
    admin = local.admin()
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = admin.create_webhook(
            "noise", f"http://127.0.0.1:{server.getsockname()[1]}/", ["rollout."]
        )
        happen(local, "rollout.halted", "r1")
        server.settimeout(WAIT_S)
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"\xff" * 200_000 + b"\r\n")
            until(
                lambda: admin.get_webhook(made["webhook_id"])["log"][0]["error"] == "answer",
                deadline_s=WAIT_S,
            )


def test_what_was_not_delivered_outlives_the_process(tmp_path):
    receiver = Receiver()
    receiver.answer = lambda: 500
    with Server(tmp_path / "data", "--webhook-local") as server:
        admin = server.admin()
        made = admin.create_webhook("chat", receiver.url, ["beacon.created"])
        admin.create_beacon("b1", "esp32c3")
        until(lambda: hook(admin, made["webhook_id"])["failing_since"], deadline_s=WAIT_S)
        server.kill()
        receiver.answer = lambda: 200
        server.start()
        admin = server.admin()
        until(counted(admin, made["webhook_id"], delivered=1), deadline_s=90)
        assert len({headers["webhook-id"] for headers, _ in receiver.came}) == 1
    receiver.close()


def test_a_queue_has_an_end(local):
    admin = local.admin()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        made = admin.create_webhook(
            "mute", f"http://127.0.0.1:{mute.getsockname()[1]}/", ["rollout."]
        )
        many = LIMITS.webhook_pending + 25

        def work(conn: Any) -> None:
            for number in range(many):
                events.add(conn, local.clock.now(), "rollout.paused", str(number), {})

        write(local, work)
        happen(local, "site.added")  # somebody looks
        until(
            counted(admin, made["webhook_id"], pending=LIMITS.webhook_pending, given_up=25),
            deadline_s=WAIT_S,
        )
        log = admin.get_webhook(made["webhook_id"], 50)["log"]
        assert {row["error"] for row in log if row["state"] == "given_up"} == {"queue_full"}


# ---- where they may go ----


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://example.org/",
        "file:///etc/passwd",
        "https://",
        "https://user:secret@example.org/",
        "https://example.org/#part",
        "https://example.org:0/",
        "https://example.org:99999/",
        "https://exa mple.org/",
        "https://example.org/\r\nX: y",
        "https://ex\u00e4mple.org/",
        "https://[::1/",
        "https://example.org/" + "x" * 1024,
    ],
)
def test_addresses_that_are_none(url):
    with pytest.raises(InputError) as caught:
        parse_target(url)
    assert caught.value.code == "webhook_url"


def test_a_name_for_this_machine_is_found_out(tmp_path):
    """What a name means is judged when it is connected to, not when it was typed in."""
    with Local(tmp_path / "data", Clock()) as local:
        admin = local.admin()
        for url in ("http://127.0.0.1:1/", "http://[::1]/", "http://169.254.169.254/latest"):
            with pytest.raises(InputError) as caught:
                admin.create_webhook("inside", url)
            assert caught.value.code == "webhook_address"
        made = admin.create_webhook("by name", "http://localhost:1/", ["rollout."])
        happen(local, "rollout.halted", "r1")

        def tried() -> bool:
            log = admin.get_webhook(made["webhook_id"])["log"]
            return bool(log) and log[0]["error"] == "webhook_address"

        until(tried, deadline_s=WAIT_S)


# ---- who may, and small things ----


def test_kinds():
    assert matches_kind(["rollout.halted"], "rollout.halted")
    assert not matches_kind(["rollout.halted"], "rollout.halted.x")
    assert matches_kind(["rollout."], "rollout.paused") and not matches_kind(
        ["rollout."], "rollouts.x"
    )
    assert matches_kind(["*"], "beacon.created") and not matches_kind(["*"], "webhook.given_up")


def test_the_signature_is_that_of_the_standard():
    # The example of the specification, standardwebhooks.com.
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = '{"test": 2432232314}'
    found = sign_message(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_only_administrators(local, receiver):
    admin = local.admin()
    made = admin.create_webhook("chat", receiver.url)
    operator = Client(local.url, admin.create_token("anna", "operator")["token"])
    for attempt in (
        operator.list_webhooks,
        lambda: operator.create_webhook("x", receiver.url),
        lambda: operator.get_webhook(made["webhook_id"]),
        lambda: operator.post_webhook_action(made["webhook_id"], "rotate"),
        lambda: operator.remove_webhook(made["webhook_id"]),
    ):
        with pytest.raises(DeniedError):
            attempt()
    assert len(admin.list_webhooks()) == 1


def test_changed_rotated_removed(local, receiver):
    admin = local.admin()
    made = admin.create_webhook("chat", receiver.url)
    webhook_id = made["webhook_id"]
    changed = admin.change_webhook(webhook_id, name="talk", kinds=["*"], enabled=False)
    assert (changed["name"], changed["kinds"], changed["enabled"]) == ("talk", ["*"], False)
    assert admin.post_webhook_action(webhook_id, "rotate")["secret"] != made["secret"]
    for kinds in ([], ["nonsense"], ["Rollout.halted"], ["rollout.x"] * 33):
        with pytest.raises(InputError):
            admin.change_webhook(webhook_id, kinds=kinds)
    admin.remove_webhook(webhook_id)
    assert admin.list_webhooks() == []
    for call in (
        admin.get_webhook,
        admin.remove_webhook,
        lambda w: admin.post_webhook_action(w, "test"),
    ):
        with pytest.raises(BeaconOtaError) as caught:
            call(webhook_id)
        assert caught.value.code == "webhook_unknown"
    actions = [entry["action"] for entry in admin.list_audit_entries(action="webhook.")]
    assert actions == ["webhook.created", "webhook.changed", "webhook.rotated", "webhook.removed"]


def test_from_the_command_line(tmp_path, receiver):
    with Server(tmp_path / "data", "--webhook-local") as server:
        env = environment(tmp_path, server)

        def run(*args: str, code: int = 0) -> str:
            done = subprocess.run(
                [COMMAND, "webhook", *args], env=env, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == code, done.stderr
            return done.stdout if code == 0 else done.stderr

        secret = run("add", "chat", receiver.url, "--kind", "rollout.", "--kind", "beacon.")
        assert secret.startswith("whsec_")
        assert json.loads(run("list", "--json"))[0]["kinds"] == ["rollout.", "beacon."]
        run("test", "chat")
        until(lambda: receiver.came, deadline_s=WAIT_S)
        headers, body = receiver.came[0]
        stamp = int(headers["webhook-timestamp"])
        signature = sign_message(secret.strip(), headers["webhook-id"], stamp, body)
        assert headers["webhook-signature"] == signature
        until(lambda: "delivered" in run("deliveries", "chat"), deadline_s=WAIT_S)
        assert "0 queued again" in run("retry", "chat")
        receiver.answer = lambda: 503
        run("test", "chat")
        until(lambda: re.search(r"│ 503 +│", run("deliveries", "chat")), deadline_s=WAIT_S)
        assert run("rotate", "chat", "--yes") != secret
        run("change", "chat", "--disable", "--name", "quiet")
        assert "disabled" in run("list")
        assert "webhook_unknown" in run("remove", "chat", "--yes", code=1)
        run("remove", "quiet", "--yes")
        assert json.loads(run("list", "--json")) == []


def test_an_auditor_sees_where_webhooks_go_and_who_had_them_try(local, receiver):
    admin = local.admin()
    made = admin.create_webhook("chat", receiver.url + "secret")
    there = receiver.url.partition("/in?")[0]
    other = there.replace("127.0.0.1", "localhost")
    admin.change_webhook(made["webhook_id"], url=other + "/secret-path")
    admin.post_webhook_action(made["webhook_id"], "test")
    told = admin.list_audit_entries(action="webhook.")
    assert [one["action"] for one in told] == [
        "webhook.created",
        "webhook.changed",
        "webhook.tested",
    ]
    assert [one["detail"].get("to") for one in told[:2]] == [there, other]
    assert "secret" not in json.dumps(told)
