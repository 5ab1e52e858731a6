"""What a mirror calls at its primary: who may, in which protocol, and what is sent once."""

import pytest
import requests

from beacon_ota.orchestrator.mirror.state import PROTOCOL

EPOCH = "0" * 24


@pytest.fixture
def token(local):
    return local.admin().call("POST", "/api/mirrors", json={"name": "m", "site": ""})["token"]


def exchange(local, token, **fields):
    body = {"epoch": EPOCH, "protocol": PROTOCOL, "status": {"moves": ""}, **fields}
    headers = {"Authorization": f"Bearer {token}"}
    url = local.url + "/api/mirror/sync"
    return requests.post(url, json=body, headers=headers, timeout=60)


def test_only_a_mirrors_token_opens_it(local, token):
    assert exchange(local, token).status_code == 200
    answer = exchange(local, local.token)
    assert answer.status_code == 403 and answer.json()["code"] == "not_a_mirror"


def test_a_mirror_of_another_protocol_is_refused_and_the_refusal_is_shown(local, token):
    answer = exchange(local, token, protocol=PROTOCOL + 1, status={"version": "9.9.9"})
    assert answer.status_code == 409 and answer.json()["code"] == "mirror_protocol"
    assert "9.9.9" in answer.json()["detail"]
    (mirror,) = local.admin().call("GET", "/api/mirrors")["mirrors"]
    assert mirror["refused"]["code"] == "mirror_protocol" and mirror["health"] == "refused"


def test_a_state_that_the_mirror_has_is_not_sent_again(local, token):
    first = exchange(local, token).json()
    assert first["state"] is not None and len(first["etag"]) == 64
    again = exchange(local, token, have=first["etag"]).json()
    if again["etag"] == first["etag"]:
        assert again["state"] is None
    else:  # the first exchange itself changed what the mirror is given
        third = exchange(local, token, have=again["etag"]).json()
        assert third["etag"] == again["etag"] and third["state"] is None


@pytest.mark.parametrize("what", ["seq", "row", "what"])
def test_a_malformed_change_is_refused_before_anything_is_taken(local, token, what):
    change = {"seq": 1, "what": "halts", "row": None, what: {"seq": 0, "row": 7, "what": 1}[what]}
    assert exchange(local, token, changes=[change]).status_code == 422
