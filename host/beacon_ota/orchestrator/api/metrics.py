"""``/metrics``: counters and gauges for Prometheus, counted from tables and memory each time."""

from collections import Counter
from collections.abc import Iterator

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from starlette.responses import Response

from beacon_ota.orchestrator.api.access import Viewer
from beacon_ota.orchestrator.api.dependencies import EngineDep, ServiceDep
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.health import health_label
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.shared_counters import ServedCounts
from beacon_ota.orchestrator.db.tables import Fields, mirror_watch, mirrors, statistics
from beacon_ota.orchestrator.http.background import BackgroundPool
from beacon_ota.orchestrator.mirror.watch import judge_mirrors
from beacon_ota.wire.report import CODES

router = APIRouter(tags=["metrics"])

_OUTCOMES = ("healthy", "gone", "failed", "accepted", "open", "waiting", "away")
_PREFIX = "beacon_ota_"
_POOL = BackgroundPool("metrics")


@router.get("/metrics")
async def show_metrics(
    request: Request, service: ServiceDep, engine: EngineDep, actor: Viewer
) -> Response:
    """Return all metrics in Prometheus' text format."""
    found = await service.db.read(statistics.read_statistics)
    mirrored = await service.db.read(mirrors.list_all)
    own = service.mirror
    now = service.clock.now()
    own_status = None if own is None else {**own.status(), "seen_at": own.contact, **own.health()}
    health = {row["name"]: found for row, found in await service.db.read(judge_mirrors, now)}
    mirrored = [one for one in mirrored if one["name"] in health]
    served = service.total_counts().add({})
    collector = _Collector(service, engine, found, mirrored, own_status, served, health)
    text = await _POOL.run(request.is_disconnected, _render_metrics, collector)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _render_metrics(collector: "_Collector") -> bytes:
    registry = CollectorRegistry()
    registry.register(collector)  # type: ignore[arg-type]
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _seconds_left(until: float | None, now: float) -> float | None:
    return None if until is None else max(until - now, 0.0)


class _Collector:
    """Collects the metrics in a thread, over the whole fleet and every rollout.

    Args:
        found: counts from the tables.
        mirrored: rows of the mirrors that have a verdict.
        own_status: status of this mirror, None on a primary.
        served: counters of all workers.
        health: verdicts by mirror name.
    """

    def __init__(
        self,
        service: Service,
        engine: Engine,
        found: statistics.Statistics,
        mirrored: list[Fields],
        own_status: Fields | None,
        served: ServedCounts,
        health: dict[str, mirror_watch.MirrorHealth],
    ):
        self.health = health
        self.service, self.engine, self.found = service, engine, found
        self.mirrored, self.own_status, self.served = mirrored, own_status, served

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._collect_attempts()
        yield from self._collect_beacons()
        yield from self._collect_releases()
        yield from self._collect_rollouts()
        yield from self._collect_served()
        yield from self._collect_mirrors()

    def _collect_mirrors(self) -> Iterator[Metric]:
        """Yield the lag of the mirrors of this primary; a mirror's own has the name ""."""
        now = self.service.clock.now()
        statuses = {
            one["name"]: {
                **one["status"],
                "seen_at": one["seen_at"],
                "lease_left_s": _seconds_left(mirror_watch.lease_ends_at(one), now),
            }
            for one in self.mirrored
        }
        healthy_by_name = {name: verdict.well for name, verdict in self.health.items()}
        if self.own_status is not None:
            statuses[""] = self.own_status
            healthy_by_name[""] = self.own_status["in_step"] and self.own_status["error"] is None
        silent, backlog, lag, skew, lease, healthy = (
            GaugeMetricFamily(_PREFIX + name, text, labels=["mirror"])
            for name, text in (
                ("mirror_silent_seconds", "Since mirror and primary last spoke"),
                ("mirror_backlog", "Changes that a mirror had not told yet"),
                ("mirror_lag_seconds", "For how long it had not told them"),
                ("mirror_clock_skew_seconds", "Lead of a mirror's clock over its primary's"),
                ("mirror_lease_seconds", "For which it hands out if it hears nothing more"),
                ("mirror_healthy", "1 when nobody has to look after it"),
            )
        )
        for name, one in statuses.items():
            if one["seen_at"] is not None:
                silent.add_metric([name], max(now - one["seen_at"], 0.0))
            for family, key in (
                (backlog, "backlog"),
                (lag, "lag_s"),
                (skew, "skew_s"),
                (lease, "lease_left_s"),
            ):
                if isinstance(one.get(key), int | float):
                    family.add_metric([name], one[key])
            healthy.add_metric([name], float(healthy_by_name[name]))
        yield from (silent, backlog, lag, skew, lease, healthy)

    def _version_labels(self, firmware_id: str) -> tuple[str, str]:
        row = self.service.fleet.releases[firmware_id].row
        return row["device_type"], row["version"]

    def _collect_attempts(self) -> Iterator[Metric]:
        by = ["device_type", "version"]
        results = CounterMetricFamily(
            _PREFIX + "attempts", "Attempts that came to an end, by result", labels=[*by, "result"]
        )
        under_way = GaugeMetricFamily(_PREFIX + "attempts_open", "Attempts under way", labels=by)
        for (firmware, result), count in self.found.results.items():
            if result is None:
                under_way.add_metric(self._version_labels(firmware), count)
            else:
                results.add_metric([*self._version_labels(firmware), result], count)
        failures = CounterMetricFamily(
            _PREFIX + "failures",
            "Failures by where and why",
            labels=[*by, "result", "stage", "code"],
        )
        merged: Counter[tuple[str, ...]] = Counter()
        for (firmware, result, stage, code), count in self.found.failures.items():
            known_code = code if code in CODES.get(stage or "", ()) else ""
            merged[(*self._version_labels(firmware), result, stage or "", known_code or "")] += (
                count
            )
        for labels, count in merged.items():
            failures.add_metric(list(labels), count)
        late = CounterMetricFamily(
            _PREFIX + "late_results",
            "Final reports of attempts given up before",
            labels=[*by, "result"],
        )
        for (firmware, result), count in self.found.late.items():
            late.add_metric([*self._version_labels(firmware), result], count)
        durations = HistogramMetricFamily(
            _PREFIX + "update_duration_seconds", "From the offer taken to the success", labels=by
        )
        for firmware, (buckets, total) in self.found.durations.items():
            durations.add_metric(self._version_labels(firmware), buckets, total)
        yield from (results, under_way, failures, late, durations)
        yield from self._collect_transfers(by)

    def _collect_transfers(self, by: list[str]) -> Iterator[Metric]:
        fetched, saved = (
            CounterMetricFamily(_PREFIX + name, text, labels=by)
            for name, text in (
                ("update_bytes_fetched", "Bytes of images that beacons fetched, as they report"),
                ("update_bytes_saved", "Bytes that successful updates did not fetch"),
            )
        )
        sectors = CounterMetricFamily(
            _PREFIX + "update_sectors",
            "Sectors of flash that updates kept, or erased and wrote",
            labels=[*by, "how"],
        )
        for firmware, moved in self.found.transfers.items():
            labels = self._version_labels(firmware)
            fetched.add_metric(labels, moved.fetched)
            saved.add_metric(labels, moved.saved)
            sectors.add_metric([*labels, "kept"], moved.kept)
            sectors.add_metric([*labels, "written"], moved.written)
        yield from (fetched, saved, sectors)

    def _collect_beacons(self) -> Iterator[Metric]:
        now = self.service.clock.now()
        view = self.service.fleet
        counts: Counter[tuple[str, ...]] = Counter()
        for node in view.beacons.copy().values():
            facts = node.beacon
            state = health_label(node, view.releases, now)
            building = view.place_of(node).building
            counts[(facts.device_type, facts.version, building, state)] += 1
        family = GaugeMetricFamily(
            _PREFIX + "beacons",
            "Registered beacons",
            labels=["device_type", "version", "building", "state"],
        )
        for labels, count in counts.items():
            family.add_metric(list(labels), count)
        yield family
        insecure = GaugeMetricFamily(
            _PREFIX + "insecure_beacons",
            "Beacons that run an app which takes unsigned releases",
            labels=["device_type", "version"],
        )
        for labels, count in self.found.insecure.items():
            insecure.add_metric(list(labels), count)
        yield insecure
        yield GaugeMetricFamily(
            _PREFIX + "insecure",
            "1 when releases without a signature are accepted",
            float(self.service.settings.insecure),
        )

    def _collect_releases(self) -> Iterator[Metric]:
        expiry = GaugeMetricFamily(
            _PREFIX + "release_expires_timestamp_seconds",
            "When the manifest of a release that is not withdrawn expires",
            labels=["device_type", "version"],
        )
        for release in self.service.fleet.releases.copy().values():
            row = release.row
            if row["expires_at"] is not None and release.state != "deprecated":
                expiry.add_metric([row["device_type"], row["version"]], row["expires_at"])
        yield expiry

    def _collect_rollouts(self) -> Iterator[Metric]:
        status = GaugeMetricFamily(
            _PREFIX + "rollout_status", "1 for the status it has", labels=["rollout", "status"]
        )
        share = GaugeMetricFamily(
            _PREFIX + "rollout_share", "Share opened", labels=["rollout", "version", "wave"]
        )
        cells = GaugeMetricFamily(
            _PREFIX + "rollout_beacons",
            "Beacons of a stage by what became of them",
            labels=["rollout", "version", "wave", "stage", "state"],
        )
        unstored = GaugeMetricFamily(
            _PREFIX + "rollout_stop_unstored",
            "1 for a rollout that is stopped in memory, and the database has not taken it",
            labels=["rollout"],
        )
        for key in self.service.fleet.stops:
            unstored.add_metric([key], 1)
        yield unstored
        now = self.service.clock.now()
        for key, entry in self.service.fleet.rollouts.copy().items():
            plan = entry.rollout.plan
            status.add_metric([key, entry.state.status.value], 1)
            counts = self.engine.count_outcomes(entry, now)
            for index, wave in enumerate(plan.waves):
                reached = entry.state.waves[index].stage
                opened = 0.0 if reached < 0 else entry.rollout.ladders[index][reached].share
                share.add_metric([key, plan.release.version, wave.name], opened)
                for stage, cell in enumerate(counts.stages[index]):
                    for name in _OUTCOMES:
                        if count := getattr(cell, name):
                            labels = [key, plan.release.version, wave.name, str(stage), name]
                            cells.add_metric(labels, count)
        yield from (status, share, cells)

    def _collect_served(self) -> Iterator[Metric]:
        counts = self.served
        for name, text, label, values in (
            ("polls", "Polls by what was decided", "reason", counts.polls),
            ("reports", "Status reports", "status", counts.reports),
            ("report_fields_broken", "Fields mended or left out", "field", counts.fields),
            ("refused", "Requests refused for who they say they are", "code", counts.refused),
            ("problems", "Requests refused for whatever reason", "code", counts.problems),
            ("downloads", "Downloads begun, by HTTP status", "status", counts.downloads),
            ("block_indexes", "Block indexes sent, by HTTP status", "status", counts.block_indexes),
        ):
            family = CounterMetricFamily(_PREFIX + name, text, labels=[label])
            for value, count in values.items():
                family.add_metric([str(value)], count)
            yield family
        for how, text in (
            ("clipped", "Journal entries cut to their bounds"),
            ("dropped", "Journal entries that nothing could be made of"),
        ):
            yield CounterMetricFamily(_PREFIX + f"journal_entries_{how}", text, counts.entries[how])
        yield CounterMetricFamily(_PREFIX + "download_bytes", "Image bytes sent", counts.bytes_sent)
        yield GaugeMetricFamily(_PREFIX + "downloads_open", "Downloads under way", counts.reading)
        deliveries = GaugeMetricFamily(
            _PREFIX + "webhook_deliveries", "Deliveries in the log", labels=["webhook", "state"]
        )
        for labels, count in self.found.deliveries.items():
            deliveries.add_metric(list(labels), count)
        yield deliveries
        yield CounterMetricFamily(_PREFIX + "commits", "Transactions", self.service.db.commits)
        yield CounterMetricFamily(_PREFIX + "writes", "Changes in them", self.service.db.writes)
