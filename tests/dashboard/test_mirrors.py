"""Mirrors as their primary shows them, and what a mirror's own pages say."""

from tests.dashboard.web import Signed
from tests.orchestrator.uplinks import Uplink
from tests.orchestrator.world import Local, until, upload

WAIT_S = 60.0


def test_a_mirror_is_seen_and_missed(tmp_path):
    with Local(tmp_path / "primary") as primary, Uplink(primary.url) as uplink:
        admin = primary.admin()
        for path in ("north", "north/1", "south"):
            admin.create_site(path)
        primary.beacons(3, site="north/1")
        primary.beacons(2, "s", site="south")
        made = admin.create_mirror("lan-north", "north")
        signed = Signed(primary.url, primary.token)

        def said() -> str:
            page = signed.page("/")
            (title,) = page.all("h2", id="mirrors-title")
            rows = [one.text for one in page.all("tr") if "lan-north" in one.text]
            assert title.text == "Mirrors" and len(rows) == 1
            return rows[0]

        assert "never seen" in said()
        with Local(
            tmp_path / "mirror",
            clock=primary.clock,
            upstream=uplink.url,
            upstream_token=made["token"],
        ) as mirror:
            until(lambda: "in step" in said(), deadline_s=WAIT_S)
            count = [one for one in signed.page("/").all("a", cls="n") if "north" in one["href"]]
            assert [one.text for one in count] == ["3"]
            until(lambda: len(mirror.service.fleet.beacons) == 3, deadline_s=WAIT_S)
            its = Signed(mirror.url, mirror.token)
            note = its.page("/").all("p", role="note")[-1].text
            assert uplink.url in note and "Last exchange" in note
            for path in ("/beacons/b0000", "/webhooks", "/"):
                assert not [one for one in its.page(path).all("button") if one["data-open"]]
            assert its.call("POST", "/api/sites", {"path": "x"}).json()["code"] == "mirror"
            uplink.cut()
            until(lambda: mirror.service.mirror.error is not None, deadline_s=WAIT_S)
            primary.clock.at += 300
            assert "out of reach" in said()
            assert "cannot be reached" in its.page("/").all("p", role="note")[-1].text


def test_a_rollouts_page_names_the_mirrors_that_have_not_confirmed_its_halt(tmp_path):
    with Local(tmp_path / "primary") as primary, Uplink(primary.url) as uplink:
        admin = primary.admin()
        admin.create_site("north")
        (beacon,) = primary.beacons(1, site="north")
        made = admin.create_mirror("lan-north", "north")
        firmware = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
        plan = {"preset": "all-at-once", "window": "00:00-24:00"}
        rollout = admin.create_rollout(firmware, plan)["rollout_id"]
        signed = Signed(primary.url, primary.token)

        def alarms() -> list[str]:
            found = signed.page(f"/rollouts/{rollout}").all("p", cls="alarm")
            return [one.text for one in found if "Not confirmed" in one.text]

        given = {"upstream": uplink.url, "upstream_token": made["token"], "lease_s": 10800.0}
        with Local(tmp_path / "mirror", clock=primary.clock, **given) as mirror:
            until(lambda: rollout in mirror.service.fleet.rollouts, deadline_s=WAIT_S)
            uplink.cut()
            until(lambda: mirror.service.mirror.error is not None, deadline_s=WAIT_S)
            admin.post_rollout_action(rollout, "halt", "enough")
            primary.clock.at += 7200
            (said,) = alarms()
            assert "lan-north" in said and "2 h ago" in said and "may hand the release out" in said
            primary.clock.at += 7200
            (said,) = alarms()
            assert "it hands out nothing since" in said
            its = Signed(mirror.url, mirror.token)
            note = its.page("/").all("p", role="note")[-1].text
            assert "Nothing new is handed out" in note
            beacon.connect(mirror.url)
            beacon.poll()
            assert "longer than its lease" in its.get(f"/beacons/{beacon.id}").text
            uplink.restore()
            until(lambda: not alarms(), deadline_s=WAIT_S, what="the halt to be confirmed")
        primary.clock.at += 120
        until(lambda: "out of reach" in signed.get("/").text, deadline_s=WAIT_S)
        until(
            lambda: "is out of reach" in signed.get("/activity").text,
            deadline_s=WAIT_S,
            what="the event to be shown",
        )
