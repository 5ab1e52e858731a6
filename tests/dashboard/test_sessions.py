"""Who sees the dashboard, and what a browser may do with it."""

import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from tests.dashboard.web import Document, Signed
from tests.orchestrator.world import Server, until, upload

PAGES = (
    "/",
    "/?by=version",
    "/beacons",
    "/beacons?state=silent&q=x",
    "/rollouts",
    "/releases",
    "/failures",
    "/activity",
    "/webhooks",
    "/audit",
    "/audit?verify=1",
)


def test_a_session_begins_with_a_token(server):
    browser = Signed(server.url)
    answer = browser.get("/rollouts?a=b")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=" + quote("/rollouts?a=b", safe="/")
    assert browser.get("/rollouts", **{"X-Refresh": "1"}).status_code == 401
    answer = browser.login(server.token, "/rollouts?a=b")
    assert answer.status_code == 303 and answer.headers["location"] == "/rollouts?a=b"
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith("beacon_ota=") and "; httponly" in cookie
    assert "; samesite=strict" in cookie and "; path=/" in cookie and "; secure" not in cookie
    assert server.token not in cookie
    assert browser.page("/rollouts?a=b").one("h1").text == "Rollouts"
    entries = server.admin().list_audit_entries(action="session.", newest=True)
    assert entries and all(server.token not in str(entry) for entry in entries)


def test_behind_tls_the_cookie_is_secure(server):
    answer = Signed(server.url).login(server.token, Origin=server.url.replace("http:", "https:"))
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-beacon_ota=") and "; secure" in cookie.lower()


@pytest.mark.parametrize(
    "there",
    [
        "//evil.example/",
        "https://evil.example/",
        "/\\evil.example",
        "javascript:alert(1)",
        "/login",
    ],
)
def test_nobody_is_sent_elsewhere(server, there):
    assert Signed(server.url).login(server.token, there).headers["location"] == "/"
    form = Document(Signed(server.url).get("/login?next=" + quote(there)).text)
    assert form.one("input", name="next")["value"] == "/"


def test_a_session_ends(server):
    browser = Signed(server.url, server.token)
    kept = browser.http.cookies.copy()
    csrf = browser.csrf()
    answer = browser.http.post(server.url + "/logout", data={"csrf": "0" * 64})
    assert answer.status_code == 403 and browser.get("/").status_code == 200
    answer = browser.http.post(server.url + "/logout", data={"csrf": csrf}, allow_redirects=False)
    assert answer.status_code == 303 and not browser.http.cookies.get_dict()
    thief = Signed(server.url)
    thief.http.cookies.update(kept)
    assert thief.get("/").status_code == 303


def test_a_revoked_token_ends_its_sessions(server):
    made = server.admin().create_token("leaver", "viewer")
    browser = Signed(server.url, made["token"])
    assert browser.get("/").status_code == 200
    server.admin().revoke_token(made["id"])
    assert browser.get("/").status_code == 303
    assert browser.get("/live").status_code == 401


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "http://[x]", "null", "//"])
def test_an_origin_that_is_none_is_another_site(server, signed, origin):
    """Of a body that nobody has to sign for: it must cost no traceback either."""
    assert Signed(server.url).login(server.token, Origin=origin).status_code == 403
    answer = signed.call("POST", "/api/sites", {"path": "x"}, Origin=origin)
    assert (answer.status_code, answer.json()["code"]) == (403, "csrf")
    form = {"csrf": signed.csrf()}
    answer = signed.http.post(server.url + "/logout", data=form, headers={"Origin": origin})
    assert answer.status_code == 403 and signed.get("/").status_code == 200


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"X-CSRF-Token": ""}, "no token of the page"),
        ({"X-CSRF-Token": "f" * 64}, "another token"),
        ({"Origin": "https://evil.example"}, "another site"),
        ({"Sec-Fetch-Site": "cross-site"}, "another site, as the browser says"),
        ({"Sec-Fetch-Site": "same-site"}, "a neighbour"),
    ],
)
def test_what_no_page_of_ours_asked_for_is_refused(server, signed, headers, why):
    answer = signed.call("POST", "/api/tokens", {"name": "x", "role": "admin"}, **headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "csrf"), why
    assert "x" not in [one["name"] for one in server.admin().list_tokens()]
    assert signed.call("POST", "/api/sites", {"path": f"s{len(why)}"}).status_code == 201


def test_a_login_from_elsewhere_is_refused(server):
    answer = Signed(server.url).login(server.token, Origin="https://evil.example")
    assert answer.status_code == 403 and "set-cookie" not in answer.headers


def test_roles(server, tmp_path):
    admin = server.admin()
    made = upload(admin, "1.0.0", tmp_path, channel="stable")
    rollout = admin.create_rollout(made["firmware_id"])["rollout_id"]
    path = f"/rollouts/{rollout}"
    levers = {}
    for role in ("viewer", "operator", "admin"):
        browser = Signed(server.url, admin.create_token(role, role)["token"])
        levers[role] = [one["id"] for one in browser.page(path).all("button") if one["data-open"]]
        names = [one.text for one in browser.page("/").all("a") if one["data-go"]]
        assert ("Audit" in names) is (role == "admin")
        assert (browser.get("/audit").status_code == 200) is (role == "admin")
        assert (browser.get("/webhooks").status_code == 200) is (role == "admin")
        if role == "viewer":
            for verb in ("halt", "pause", "abort", "advance"):
                answer = browser.call("POST", f"/api{path}/{verb}", {"reason": "because"})
                assert (answer.status_code, answer.json()["code"]) == (403, "role_too_low")
            assert admin.get_rollout(rollout)["status"] == "active"
    assert levers["viewer"] == []
    assert (
        levers["operator"] == levers["admin"] == ["do-advance-0", "do-pause", "do-halt", "do-abort"]
    )
    admin.post_rollout_action(rollout, "abort", "over")


@pytest.mark.parametrize(
    "path", [*PAGES, "/login", "/nowhere", "/beacons/nobody", "/beacons?state=x"]
)
def test_no_page_goes_without_its_policy(server, signed, path):
    answer = signed.get(path)
    assert answer.status_code in (200, 404, 422)
    if answer.headers["content-type"].startswith("text/html"):
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        page = Document(answer.text)
        assert not page.all("style") and all(one["src"] for one in page.all("script"))
        assert not [one for one in page.elements for name in one.attributes if name[:2] == "on"]
        assert not [one for one in page.elements if "style" in one.attributes]
        ids = [one["id"] for one in page.elements if one["id"]]
        assert len(ids) == len(set(ids))


def test_static_files_are_kept_for_as_long_as_they_stay_the_same(signed):
    page = signed.page("/")
    for address in (page.one("script")["src"], page.one("link", rel="stylesheet")["href"]):
        answer = signed.get(address)
        assert "immutable" in answer.headers["cache-control"]
        assert "http" not in answer.text.replace("http://www.w3.org", "")  # nobody else is asked
        assert signed.get(address.partition("?")[0]).headers["cache-control"] == "no-cache"
    assert signed.get("/static/../page_base.py").status_code == 404
    assert signed.get("/static/nothing.css").status_code == 404


def test_a_fleet_without_signatures_says_so_on_every_page(signed):
    for path in PAGES:
        assert "Insecure fleet" in signed.page(path).one("p", role="note").text


def test_empty_pages_say_what_to_do_next(tmp_path):
    with Server(tmp_path / "data") as server:
        browser = Signed(server.url, server.token)
        for path, hint in (
            ("/", "beacon-ota provision"),
            ("/rollouts", "beacon-ota rollout create"),
            ("/releases", "beacon-ota release upload"),
            ("/webhooks", "beacon-ota webhook add"),
        ):
            assert hint in browser.page(path).one("main").text, path
        for path in ("/beacons", "/failures", "/activity", "/audit"):
            browser.page(path)


def test_wrong_tokens_cost_time_and_then_a_minute(tmp_path):
    with Server(tmp_path / "data") as server:
        held = Signed(server.url, server.token)
        browser = Signed(server.url)
        took = []
        for number in range(14):  # the count begins anew with a minute
            began = time.monotonic()
            answer = browser.login(f"guess-{number}")
            took.append(time.monotonic() - began)
            assert answer.status_code == 401 and "set-cookie" not in answer.headers
            assert "unknown" in Document(answer.text).one("p", role="alert").text
            if took[-1] > 1.5:  # twice as long each time
                break
        assert took[-1] > 1.5

        def guess(number: int) -> int:
            return Signed(server.url).login(f"other-{number}").status_code

        with ThreadPoolExecutor(40) as pool:
            # Counted by the minute: where one ends in between, it takes a second round.
            until(lambda: 429 in pool.map(guess, range(40)), deadline_s=90, what="no more guesses")
            answer = browser.login(server.token)
            if answer.status_code != 303:  # the minute was over just now
                assert answer.status_code == 429 and answer.headers["retry-after"] == "60"
                assert "Wait a minute" in Document(answer.text).one("p", role="alert").text
        assert held.get("/").status_code == 200  # sessions go on
