"""A fleet of 298 with a history: every number leads to the beacons behind it."""

from pathlib import Path

import pytest

from tests.dashboard.fleet import Campus, populate
from tests.dashboard.web import Document, Signed

LISTINGS = ("/beacons", "/failures")


@pytest.fixture(scope="module")
def campus(tmp_path_factory):
    with populate(tmp_path_factory.mktemp("campus")) as campus:
        yield campus


def behind(browser: Signed, address: str) -> str:
    """Return how many beacons there are where a number leads."""
    page = browser.page(address)
    if address.startswith("/beacons/"):
        return "1"
    return page.one("p", cls="total").text.split()[0]


def test_every_number_leads_to_its_beacons(campus: Campus):
    browser = Signed(campus.local.url, campus.local.token)
    seen: dict[str, str] = {}
    pages = {"/", "/?by=version", "/rollouts", "/releases", "/failures", "/beacons"}
    pages |= {f"/rollouts/{one['rollout_id']}" for one in campus.admin.list_rollouts()}
    pages |= {f"/releases/{one['firmware_id']}" for one in campus.releases.values()}
    checked = 0
    for path in sorted(pages):
        page = browser.page(path)
        tiles = [one for one in page.all("a") if one["href"].startswith("/beacons?")]
        numbers = [one for one in tiles if one.text.split()[0].replace(",", "").isdigit()]
        numbers += page.all("a", cls="n")
        for one in numbers:
            count = one.text.split()[0]
            found = seen.setdefault(one["href"], "") or behind(browser, one["href"])
            seen[one["href"]] = found
            assert found == count, (path, one["href"], one.text)
            checked += 1
    assert checked > 60
    everything(campus, browser)
    filters(campus, browser)


def everything(campus: Campus, browser: Signed) -> None:
    """Pages of one thing say what is known about it."""
    page = browser.page("/")
    assert len([one for one in page.all("a", cls="c") if one["href"]]) == 298
    assert [one.text for one in page.all("h3")][:3] != []
    floors = [one.text.split()[-1] for one in page.all("a", cls="name")]
    assert sum(map(int, floors)) == 298
    text = browser.page("/beacons/hos-20004").one("main").text
    for said in ("insecure", "watchdog", "reason 200, channel 6", "main loop", "48.1 kB"):
        assert said in text
    rollout = browser.page(f"/rollouts/{campus.rollout_id}").one("main").text
    for said in (
        "new switches in the hospital",
        "by anna",
        "more failure",
        "Everybody else",
        "soak",
    ):
        assert said in rollout
    release = browser.page(f"/releases/{campus.releases['1.4.0']['firmware_id']}").one("main").text
    for said in (
        "Faster provisioning",
        campus.releases["1.4.0"]["checksum"],
        "keys.json",
        "main.mpy",
    ):
        assert said in release
    failures = browser.page("/failures?hours=").one("main").text
    for said in ("stall", "self_test", "watchdog", "checksum", "no byte for 20 s at 43 %"):
        assert said in failures
    assert "each following the one before" in browser.page("/audit?verify=1").one("main").text


def filters(campus: Campus, browser: Signed) -> None:
    """Listings narrow down, sort and turn pages; what cannot be is refused by name."""
    first = browser.page("/beacons")
    assert "page 1 of 3" in first.one("nav", cls="pages").text
    rows = [browser.page(f"/beacons?sort=-id&page={page}").all("a", cls="id") for page in (1, 2, 3)]
    ids = [one.text for page in rows for one in page]
    assert ids == sorted(campus.fleet, reverse=True)
    for sort in ("version", "-version", "site", "-state", "seen", "nonsense"):
        assert len(browser.page(f"/beacons?sort={sort}").all("a", cls="id")) == 100
    assert behind(browser, "/beacons?q=hos-2+doors") == "0"
    assert behind(browser, "/beacons?q=hos-0+doors") == "30"
    assert behind(browser, "/beacons?site=campus/library&version=1.4.0&hours=1&unknown=1") != "0"
    for query, status in (
        ("state=bad", 422),
        ("look=bad", 422),
        ("flag=bad", 422),
        ("failure=a/b&hours=x", 422),
        ("cause=1e9&result=any", 422),
        ("release=nothing", 404),
        ("rollout=nothing&cell=0.0.healthy", 404),
        ("site=%00%ff&q=%22%3E", 200),
    ):
        answer = browser.get(f"/beacons?{query}")
        assert answer.status_code == status, query
        Document(answer.text)
    for path in ("/rollouts/nothing", "/releases/nothing", "/beacons/nothing"):
        assert browser.get(path).status_code == 404
    older = browser.page("/activity").one("a", rel="next")["href"]
    assert browser.page(older).one("h1").text == "Activity"


@pytest.mark.browser
def test_pictures(campus: Campus, chromium):
    """Pictures of every page, for people to look at: reports/dashboard."""
    from tests.dashboard.conftest import sign_in, watch

    folder = Path("reports/dashboard")
    folder.mkdir(parents=True, exist_ok=True)
    complaints: list[str] = []
    url = campus.local.url
    pages = {
        "fleet": "/",
        "versions": "/?by=version",
        "beacons": "/beacons",
        "beacon": "/beacons/hos-20004",
        "rollouts": "/rollouts",
        "rollout": f"/rollouts/{campus.rollout_id}",
        "releases": "/releases",
        "release": f"/releases/{campus.releases['1.4.0']['firmware_id']}",
        "failures": "/failures",
        "activity": "/activity",
        "webhooks": "/webhooks",
        "audit": "/audit",
    }
    for mode, options in (
        ("light", {"viewport": {"width": 1280, "height": 800}}),
        ("dark", {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"}),
        ("mobile", {"viewport": {"width": 390, "height": 844}, "is_mobile": True}),
    ):
        context = chromium.new_context(
            device_scale_factor=1, timezone_id="Europe/Berlin", **options
        )
        page = context.new_page()
        watch(page, url, complaints)
        sign_in(page, url, campus.local.token)
        for name, path in pages.items():
            page.goto(url + path)
            page.wait_for_selector(".pulse[data-state=on]")
            page.screenshot(path=folder / f"{mode}-{name}.png", full_page=True)
        context.close()
    assert not complaints
