"""Names of tokens: the audit log tells by them who did what."""

import pytest

from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError
from tests.orchestrator.world import Server


def refusal(call, *args, **named) -> str:
    with pytest.raises(BeaconOtaError) as caught:
        call(*args, **named)
    return caught.value.code


@pytest.mark.parametrize(
    "name",
    [
        "engine",
        "Engine",
        "ENGINE",
        "ｅｎｇｉｎｅ",
        "orchestrator",
        "mirror",
        "mirror hq",
        "Mirror hq",
        "command line",
    ],
)
def test_names_of_the_system_itself(admin, name):
    before = admin.verify_audit()
    assert refusal(admin.create_token, name, "viewer") == "name_reserved"
    assert admin.verify_audit() == before


@pytest.mark.parametrize(
    "name", [" a", "a ", "a\nb", "a\x1b[31mb", "a\u202eb", "a\u200bb", "a\0b", "\ud800", "\u00a0"]
)
def test_names_that_cannot_be_read(admin, name):
    assert refusal(admin.create_token, name, "viewer") in ("name_characters", "request_invalid")


def test_two_tokens_never_have_one_name(server, admin):
    made = admin.create_token("anna", "operator")
    for again in ("anna", "Anna", "ａnna", "first", "First"):
        assert refusal(admin.create_token, again, "viewer") == "name_taken"
    admin.revoke_token(made["id"])
    again = admin.create_token("anna", "operator")
    assert again["id"] != made["id"]
    assert Client(server.url, again["token"]).call("GET", "/api/tokens/me")["name"] == "anna"


def test_a_mirror_of_the_same_name_can_be_made_again(admin):
    for _ in range(2):
        made = admin.call("POST", "/api/mirrors", json={"name": "again", "site": ""})
        admin.call("DELETE", f"/api/mirrors/{made['mirror_id']}")


def test_without_a_server_too(tmp_path):
    from typer.testing import CliRunner

    from beacon_ota.cli import token

    with Server(tmp_path / "data"):
        pass
    run = CliRunner()
    new = ["new", "--data", str(tmp_path / "data")]
    for name, code in (("engine", "name_reserved"), ("first", "name_taken")):
        done = run.invoke(token.app, [*new, name])
        assert getattr(done.exception, "code", None) == code, (done.output, done.exception)
