"""What a person does in a real browser: sees, presses, types, and is asked before it happens."""

import secrets
import time
from typing import Any

import pytest

from tests.dashboard.conftest import WAIT_MS
from tests.orchestrator.world import Server, TestBeacon, until, upload

pytestmark = pytest.mark.browser
WAIT_S = WAIT_MS / 1000
EVIL = "\"'><img src=x onerror=pwned()><script>pwned()</script>"
PLAN = {
    "window": "00:00-24:00",
    "waves": [{"name": f"north {EVIL}"[:64], "sites": ["north"]}, {"name": "rest", "rest": True}],
    "ladder": [{"share": 0.5, "soak": "24h"}, {"share": 1}],
}


class Fleet:
    """Two buildings, two releases, and a rollout of the second."""

    def __init__(self, server: Server, tmp: Any):
        admin = self.admin = server.admin()
        self.tag = secrets.token_hex(2)
        for path in ("north", "north/1", "south"):
            if path not in [site["path"] for site in admin.list_sites()]:
                admin.create_site(path, name=f"{path} {EVIL}"[:64])
        number = len(admin.list_firmwares())
        self.old = upload(admin, f"1.{number}.0", tmp, description=EVIL, channel="stable")
        self.new = upload(admin, f"1.{number + 1}.0", tmp, description=EVIL, channel="stable")
        self.beacons = []
        for place in range(6):
            beacon_id, key = f"{self.tag}-{place}", secrets.token_bytes(32)
            site = "north/1" if place < 4 else "south"
            admin.create_beacon(beacon_id, "esp32c3", key=key.hex(), site=site)
            beacon = TestBeacon(server.url, beacon_id, key, self.old["version"])
            beacon.image = self.old["checksum"]
            beacon.poll()
            self.beacons.append(beacon)
        plan = {**PLAN, "waves": PLAN["waves"]}
        made = admin.create_rollout(self.new["firmware_id"], plan, name=f"{self.tag} {EVIL}"[:64])
        self.rollout = made["rollout_id"]
        self.path = f"/rollouts/{self.rollout}"

    def offered(self) -> tuple[TestBeacon, dict[str, Any]]:
        """Return the first beacon that is offered the new release."""

        def ask():
            return next(((one, offer) for one in self.beacons if (offer := one.offer())), None)

        return until(ask, deadline_s=WAIT_S, what="an offer")

    @property
    def status(self) -> str:
        return self.admin.get_rollout(self.rollout)["status"]

    def end(self) -> None:
        if self.status != "aborted":
            self.admin.post_rollout_action(self.rollout, "abort", "the test is over")
        for beacon in self.beacons:
            self.admin.remove_beacon(beacon.id)


@pytest.fixture
def fleet(server, tmp_path):
    fleet = Fleet(server, tmp_path)
    yield fleet
    fleet.end()


def mark(page: Any) -> None:
    """Leave something behind that a reload would take away."""
    page.evaluate("document.documentElement.dataset.mark = 'here'")
    page.wait_for_selector(".pulse[data-state=on]")


def unmoved(page: Any) -> bool:
    return page.evaluate("document.documentElement.dataset.mark") == "here"


def test_a_report_shows_at_once_and_without_a_reload(fleet, visit):
    overview, rollout = visit("/"), visit(fleet.path)
    beacon, offer = fleet.offered()
    detail = visit(f"/beacons/{beacon.id}")
    pages = (overview, rollout, detail)
    for page in pages:
        mark(page)
    assert overview.locator(f"#c-{beacon.id}.s-behind").count() == 1
    beacon.download(offer)
    beacon.report("downloading", offer, progress=42)
    overview.wait_for_selector(f"#c-{beacon.id}.s-updating")
    detail.wait_for_selector("dd:has-text('42 %')")
    beacon.report("rebooting", offer)
    beacon.install(offer)
    beacon.report("success", offer, previous_version=fleet.old["version"])
    overview.wait_for_selector(f"#c-{beacon.id}.s-valid")
    overview.wait_for_selector(f".news li:has-text('{beacon.id}')")
    rollout.wait_for_selector(".st-now .k-healthy a:text-is('1')")
    detail.wait_for_selector(f"dd .version:text-is('{offer['version']}')")
    beacon.report("idle", journal=[[1, 0, "wifi", "lost", "reason 200"]])
    detail.wait_for_selector("#journal-title ~ * td:text-is('reason 200')")
    other, offer = fleet.offered()
    other.fail(offer, "verify", "checksum")
    overview.wait_for_selector(f"#c-{other.id}.s-failed")
    rollout.wait_for_selector(f"#failed-title ~ * a:text-is('{other.id}')")
    assert all(unmoved(page) for page in pages)


def test_nobody_polls(fleet, visit):
    """A page asks when something has happened, and never more than once a second."""
    page = visit("/")
    mark(page)
    page.wait_for_load_state("networkidle")
    asked: list[float] = []
    page.on("request", lambda _request: asked.append(time.monotonic()))
    page.wait_for_timeout(3000)
    assert len(asked) <= 2  # what was told just before, and a pulse, at most
    began, beacon = time.monotonic(), fleet.beacons[0]
    for number in range(80):
        beacon.report("idle", heap_free_min=50_000 + number)
    fleet.admin.post_beacon_action(beacon.id, "quarantine", "enough")
    page.wait_for_selector(f"#c-{beacon.id}.s-quarantined")
    assert len(asked) <= 4 + (time.monotonic() - began)


def test_halt_asks_first_and_then_halts(fleet, visit):
    page = visit(fleet.path)
    mark(page)
    page.click("#do-halt")
    dialog = page.locator("dialog#halt")
    assert "Withholds the release" in dialog.inner_text()
    page.click("dialog#halt [data-close]")
    assert not dialog.is_visible() and fleet.status == "active"
    page.click("#do-halt")
    page.click("dialog#halt [data-confirm]")  # without a reason
    assert dialog.is_visible() and fleet.status == "active"
    page.fill("dialog#halt [name=reason]", "smoke on floor 3 <b>")
    page.click("dialog#halt [data-confirm]")
    page.wait_for_selector(".heading .b-halted")
    assert fleet.status == "halted" and unmoved(page)
    assert "smoke on floor 3 <b>" in page.inner_text(".alarm")
    entries = fleet.admin.list_audit_entries(target=fleet.rollout, newest=True)
    assert any("smoke on floor 3" in entry["reason"] for entry in entries)
    page.click("#do-resume")
    page.click("dialog#resume [data-confirm]")
    page.wait_for_selector(".heading .b-active")
    assert fleet.status == "active"
    page.click("#do-pause")
    page.click("dialog#pause [data-confirm]")
    page.wait_for_selector(".heading .b-paused")


def test_a_refusal_is_shown_where_it_was_asked(fleet, visit):
    page = visit(fleet.path)
    mark(page)
    page.pardon("409")
    page.click("#do-abort")
    page.fill("dialog#abort [name=reason]", "too late")
    page.route("**/live*", lambda route: route.abort())
    page.pardon("ERR_FAILED")
    fleet.admin.post_rollout_action(fleet.rollout, "abort", "somebody was faster")
    page.click("dialog#abort [data-confirm]")
    page.wait_for_selector("dialog#abort .refused:visible")
    assert page.locator("dialog#abort").is_visible()


def test_a_question_stays_open_when_its_levers_go(fleet, visit):
    page = visit(fleet.path)
    mark(page)
    page.pardon("409")
    page.click("#do-abort")
    page.fill("dialog#abort [name=reason]", "too late")
    fleet.admin.post_rollout_action(fleet.rollout, "abort", "somebody was faster")
    page.wait_for_selector(".heading .b-aborted", state="attached")
    page.click("dialog#abort [data-confirm]")
    page.wait_for_selector("dialog#abort .refused:visible")
    page.click("dialog#abort [data-close]")
    page.wait_for_selector("dialog#abort", state="detached")


def test_a_press_is_not_lost_when_the_page_follows(fleet, visit):
    page = visit(fleet.path)
    mark(page)
    page.click("#do-abort")
    page.fill("dialog#abort [name=reason]", "enough of it")
    page.hover("dialog#abort [data-confirm]")
    page.mouse.down()
    fleet.admin.post_rollout_action(fleet.rollout, "halt", "somebody was faster")
    page.wait_for_selector(".heading .b-halted", state="attached")
    page.mouse.up()
    page.wait_for_selector(".heading .b-aborted", state="attached")


def test_what_two_decide_is_done_once(fleet, visit):
    def by_hand() -> list[str]:
        made = fleet.admin.get_rollout(fleet.rollout)["transitions"]
        return [one["detail"] for one in made if one["reason"] == "by_hand"]

    page = visit(fleet.path)
    mark(page)
    page.pardon("409")
    page.click("#do-advance-0")
    page.fill("dialog#advance-0 [name=reason]", "it looks good")
    fleet.admin.post_rollout_action(fleet.rollout, "advance", "somebody was faster")
    page.wait_for_selector("main :text('somebody was faster')", state="attached")
    page.click("dialog#advance-0 [data-confirm]")
    page.wait_for_selector("dialog#advance-0 .refused:visible")
    assert by_hand() == ["somebody was faster"]
    page.click("dialog#advance-0 [data-close]")
    revision = fleet.admin.get_rollout(fleet.rollout)["revision"]
    there = f"dialog#advance-0 [name=revision][value='{revision}']"
    page.wait_for_selector(there, state="attached")  # it follows as soon as it is closed
    page.click("#do-advance-0")
    page.fill("dialog#advance-0 [name=reason]", "now that I have seen it")
    page.click("dialog#advance-0 [data-confirm]")
    page.wait_for_selector("dialog#advance-0", state="hidden")
    assert by_hand() == ["somebody was faster", "now that I have seen it"]


def test_a_viewer_only_looks(fleet, visit, server):
    token = fleet.admin.create_token(f"guest {fleet.tag}", "viewer")["token"]
    page = visit(fleet.path, token=token)
    page.pardon("403")
    for path in (
        fleet.path,
        f"/beacons/{fleet.beacons[0].id}",
        f"/releases/{fleet.new['firmware_id']}",
    ):
        page.goto(server.url + path)
        assert page.locator("button[data-open], form[data-api]").count() == 0
    status = page.evaluate(
        """async (path) => {
            const csrf = document.querySelector("meta[name=csrf]").content;
            const headers = {"X-CSRF-Token": csrf, "Content-Type": "application/json"};
            const body = JSON.stringify({reason: "because I can"});
            return (await fetch(`/api${path}/halt`, {method: "POST", headers, body})).status;
        }""",
        fleet.path,
    )
    assert status == 403 and fleet.status == "active"


def test_all_of_it_by_keyboard(fleet, visit):
    page = visit("/")
    keys = page.keyboard

    def focused() -> str:
        return page.evaluate("document.activeElement.id || document.activeElement.textContent")

    keys.press("Tab")
    assert focused() == "Skip to the content"
    keys.press("Enter")
    until(lambda: page.evaluate("location.hash") == "#main", deadline_s=WAIT_S)
    keys.press("?")
    assert page.locator("#help").is_visible()
    keys.press("Escape")
    assert not page.locator("#help").is_visible()
    page.focus(f"#c-{fleet.beacons[0].id}")
    keys.press("ArrowRight")
    assert focused() == f"c-{fleet.beacons[1].id}"
    keys.press("ArrowLeft")
    assert focused() == f"c-{fleet.beacons[0].id}"
    keys.press("ArrowDown")
    assert focused() == f"c-{fleet.beacons[4].id}"
    keys.press("/")
    keys.type(fleet.beacons[4].id)
    page.wait_for_selector(f"#c-{fleet.beacons[0].id}.dim")
    assert page.locator(f"#c-{fleet.beacons[4].id}:not(.dim)").count() == 1
    keys.press("Enter")
    page.wait_for_url("**/beacons?q=*")
    assert page.locator("table.rows tbody tr").count() == 1
    keys.press("j")
    assert focused() == fleet.beacons[4].id
    keys.press("Enter")
    page.wait_for_url("**/beacons/*")
    keys.press("g")
    keys.press("o")
    page.wait_for_url("**/rollouts")
    keys.press("j")
    keys.press("Enter")
    page.wait_for_url("**/rollouts/*")
    for _ in range(60):
        if focused() == "do-halt":
            break
        keys.press("Tab")
    keys.press("Enter")
    assert page.locator("dialog#halt").is_visible()
    while focused() != "" or page.evaluate("document.activeElement.name") != "reason":
        keys.press("Tab")
    keys.type("no hands on the mouse")
    keys.press("Enter")
    page.wait_for_selector(".heading .b-halted")
    assert fleet.status == "halted"
    outline = page.evaluate(
        """() => { const a = document.querySelector("nav a"); a.focus();
        return getComputedStyle(a).outlineStyle }"""
    )
    assert outline != "none"


def names_missing(page: Any) -> list[str]:
    """Return what a screen reader could not name."""
    return page.evaluate(
        """() => [...document.querySelectorAll("button, a[href], input:not([type=hidden]), select")]
        .filter(e => !e.hidden && !(e.textContent.trim() || e.title || e.ariaLabel
            || e.getAttribute("aria-labelledby") || e.labels?.length))
        .map(e => e.outerHTML.slice(0, 120))"""
    )


def test_every_page_in_every_light_and_width(fleet, visit, server):
    beacon, offer = fleet.offered()
    beacon.fail(offer, "verify", "image")
    beacon.report(
        "idle", insecure=True, journal=[[1, 0, "wifi", "lost", EVIL[:60]]], heap_free_min=1
    )
    fleet.admin.change_beacon(beacon.id, tags=["doors"])
    fleet.admin.post_beacon_action(beacon.id, "quarantine", EVIL)
    fleet.admin.create_token(f"{fleet.tag}{EVIL}"[:60], "viewer")
    hook = {"name": EVIL[:64], "url": "https://a.example/?" + "x" * 300, "kinds": ["rollout."]}
    fleet.admin.call("POST", "/api/webhooks", json=hook)
    fleet.admin.post_rollout_action(fleet.rollout, "halt", EVIL)
    pages = [
        "/",
        "/?by=version",
        "/beacons",
        f"/beacons?q={EVIL}",
        f"/beacons/{beacon.id}",
        "/rollouts",
        fleet.path,
        "/releases",
        f"/releases/{fleet.new['firmware_id']}",
        "/failures",
        "/activity",
        "/webhooks",
        "/audit",
        f"/audit?action={EVIL}",
        "/beacons/nobody",
    ]
    for options in (
        {},
        {"color_scheme": "dark"},
        {"viewport": {"width": 360, "height": 700}, "is_mobile": True, "has_touch": True},
    ):
        page = visit("/", **options)
        page.pardon("404")
        page.add_init_script("window.pwned = () => { window.hurt = true }")
        grounds = set()
        dark = options.get("color_scheme") == "dark"
        for path in pages[::4] if dark else pages:  # what is dark differs by its colours alone
            page.goto(server.url + path)
            assert page.evaluate("window.hurt") is None, path
            assert page.locator("img, script:not([src]), iframe").count() == 0, path
            assert page.locator("h1").count() == 1 and page.locator("main").count() == 1, path
            assert page.locator("header nav, footer").count() == 2, path
            assert names_missing(page) == [], path
            too_wide = "document.documentElement.scrollWidth - innerWidth"
            assert page.evaluate(too_wide) <= 0, (path, options)
            grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 1
        lightness = sum(map(int, grounds.pop()[4:-1].split(",")))
        assert lightness < 150 if dark else lightness > 600
        page.keyboard.press("t")
        turned = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, turned[4:-1].split(","))) < 150) is not dark
        page.reload()  # the choice is kept, and the first paint has it
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == turned


def test_what_happens_is_said(fleet, visit):
    page = visit("/releases")
    mark(page)
    fleet.admin.post_rollout_action(fleet.rollout, "halt", "heard in every room")
    said = page.locator("#says[aria-live=polite] a:has-text('is halted')")
    said.first.wait_for()
    assert said.first.get_attribute("href") == fleet.path


def test_signing_out_and_back_in(fleet, visit, server):
    page = visit(fleet.path)
    page.click("text=Sign out")
    page.wait_for_url("**/login")
    page.goto(server.url + fleet.path)
    page.wait_for_url(lambda url: "/login?next=" in url)
    page.pardon("401")
    page.fill("input[name=token]", "not-a-token")
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=alert]")
    page.fill("input[name=token]", server.token)
    page.keyboard.press("Enter")
    page.wait_for_url("**" + fleet.path)
