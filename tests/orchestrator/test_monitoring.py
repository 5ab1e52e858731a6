"""What the Grafana dashboard and the alert rules name is what the orchestrator exports."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.orchestrator.world import Server, beacons, until, upload

DOCS = Path(__file__).parents[2] / "docs"
_SAMPLE = re.compile(r"^([a-z_:][a-z0-9_:]*)(?:\{(.*)\})? ", re.M)
_NAMED = re.compile(r"\b((?:beacon_ota|process)_[a-z0-9_]+)\b(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)=~?!?"')
_BY = re.compile(r"\b(?:by|on) \(([^)]*)\)")
_LEGEND = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, set[str]]:
    """Names of metrics and their labels, of an orchestrator where everything has happened."""
    tmp = tmp_path_factory.mktemp("monitoring")
    with Server(tmp / "data", "--webhook-local") as server:
        admin = server.admin()
        firmware = upload(admin, "1.1.0", tmp, channel="stable")
        plan = {"preset": "all-at-once", "window": "00:00-24:00"}
        admin.create_rollout(firmware["firmware_id"], plan)
        fleet = beacons(server, 4)
        offers = [until(beacon.offer, deadline_s=180) for beacon in fleet]
        fleet[0].update(offers[0], bytes_fetched=8192, sectors_kept=1, sectors_written=2)
        fleet[1].fail(offers[1])
        assert fleet[2].download(offers[2]).status == 200
        fleet[3].report("idle", insecure=True)
        fleet[3].key = bytes(32)
        fleet[3].call("GET", "/firmwares/latest/esp32c3", check=False)
        admin.create_webhook("chat", "http://127.0.0.1:9/", ["beacon."])
        admin.create_beacon("one-more", "esp32c3")
        text = ""

        def told() -> bool:
            nonlocal text
            text = admin.request("GET", "/metrics").text
            return 'webhook_deliveries{state="pending",webhook="chat"}' in text

        until(told, deadline_s=180)
    found: dict[str, set[str]] = {}
    for name, labels in _SAMPLE.findall(text):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    # Families of which nothing has happened: late results, expiring manifests, tokens refused.
    declared = re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M)
    for name, _kind in declared:
        found.setdefault(name, {"device_type", "version", "result", "mirror"})
    return found


def expressions() -> dict[str, str]:
    """Return every expression there is, by where it stands."""
    rules = yaml.safe_load((DOCS / "alerts.yml").read_text())
    found = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    board = json.loads((DOCS / "grafana" / "beacon-ota.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    for note in board["annotations"]["list"]:
        found[note["name"]] = note["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found[f"${variable['name']}"] = variable["query"]
    return found


def test_every_metric_named_is_exported(exported):
    named = 0
    for where, expression in expressions().items():
        for name, selector in _NAMED.findall(expression):
            named += 1
            assert name in exported, (where, name)
            for label in _LABEL.findall(selector or ""):
                assert label in exported[name] | {"job", "instance"}, (where, name, label)
    assert named > 50


def test_labels_that_are_summed_over_or_shown_are_there(exported):
    every = {label for labels in exported.values() for label in labels} | {"le"}
    for where, expression in expressions().items():
        for labels in _BY.findall(expression):
            for label in labels.split(","):
                assert label.strip() in every, (where, label)
    board = json.loads((DOCS / "grafana" / "beacon-ota.json").read_text())
    texts = [t["legendFormat"] for p in board["panels"] for t in p.get("targets", ())]
    rules = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"][0]["rules"]
    texts += [text for rule in rules for text in rule["annotations"].values()]
    for text in texts:
        for label in _LEGEND.findall(text):
            assert label in every, (text, label)


def test_everything_exported_is_looked_at(exported):
    """Nothing is counted that no panel and no rule shows."""
    shown = " ".join(expressions().values())
    for name in exported:
        if name.startswith("beacon_ota_") and not name.endswith(("_created", "_count", "_sum")):
            family = name.removesuffix("_total").removesuffix("_bucket")
            assert family in shown, name


def test_the_rules_are_rules():
    rules = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"][0]["rules"]
    page = (DOCS / "monitoring.md").read_text()
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"] and f"`{rule['alert']}`" in page
        for left, right in ("()", "{}", "[]"):
            assert rule["expr"].count(left) == rule["expr"].count(right)
    board = json.loads((DOCS / "grafana" / "beacon-ota.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
