"""Mirrors as their primary shows them, and what a mirror's own pages say."""

from tests.dashboard.web import Signed
from tests.orchestrator.uplinks import Uplink
from tests.orchestrator.world import Local, until

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
            until(lambda: len(mirror.service.view.nodes) == 3, deadline_s=WAIT_S)
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
