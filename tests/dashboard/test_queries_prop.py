"""Whatever an address asks for, there is a page: never an error of ours, never a long one."""

from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beacon_ota.orchestrator.dashboard import HANDLERS, PAGES
from beacon_ota.orchestrator.dashboard.selection import Selection
from tests.dashboard.web import Document, Signed
from tests.orchestrator.world import Local, upload

NAMES = [
    *Selection.__dataclass_fields__,
    *("page", "sort", "by", "kind", "before", "action", "target", "verify", "next", "after"),
]
TEXT = st.text(max_size=30) | st.sampled_from(
    [
        "",
        "-",
        "0",
        "1",
        "any",
        "9" * 30,
        "-1",
        "1e9",
        "٣",
        "0.0.healthy",
        "..",
        "a/b",
        "/",
        "%00",
        "\x00",
    ]
)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("queries")
    with Local(tmp / "data") as local:
        admin = local.admin()
        (beacon,) = local.beacons(1)
        firmware = upload(admin, "1.1.0", tmp, channel="stable")["firmware_id"]
        plan = {"preset": "all-at-once", "window": "00:00-24:00"}
        rollout = admin.create_rollout(firmware, plan)["rollout_id"]
        beacon.fail(beacon.offered())
        known = [beacon.id, firmware, rollout, "verify/checksum", "1.1.0", "failed", "valid"]
        yield Signed(local.url, local.token), st.sampled_from(known)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_query_has_an_answer(asked, data):
    browser, known = asked
    path = data.draw(st.sampled_from([*PAGES, "/login"]))
    for name in ("beacon_id", "rollout_id", "firmware_id"):
        if name in path:
            part = data.draw(known | st.text(min_size=1, max_size=20))
            path = path.replace("{" + name + "}", quote(part, safe=""))
    query = data.draw(st.dictionaries(st.sampled_from(NAMES), TEXT | known, max_size=5))
    answer = browser.http.get(browser.url + path, params=query, allow_redirects=False, timeout=60)
    assert answer.status_code in (200, 307, 404, 422), (path, query, answer.text[:300])
    assert len(answer.content) < 200_000
    if answer.status_code == 307:  # one slash too many
        assert answer.headers["location"].startswith(browser.url + "/")
    elif answer.headers["content-type"].startswith("text/html"):
        page = Document(answer.text)
        assert page.one("h1") and not page.all("img")


def test_all_pages_are_asked_for():
    assert {"/", "/beacons", "/audit", "/webhooks"} <= set(PAGES) and "/live" in HANDLERS
