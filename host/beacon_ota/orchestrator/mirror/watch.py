"""Watches the health of a primary's mirrors: becoming unhealthy is an event, and so is recovery."""

import asyncio
import logging
from typing import NamedTuple

from sqlalchemy import Connection

from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.tables import Fields, events, mirror_watch, mirrors

log = logging.getLogger("beacon_ota.orchestrator")

LOOK_S = 5.0  # between two rounds, in real (unscaled) seconds


class Turn(NamedTuple):
    """A change of a mirror's health: it has become healthy or unhealthy."""

    name: str
    verdict: mirror_watch.MirrorHealth
    event: Fields


class MirrorWatch:
    """The background task of the leading process."""

    def __init__(self, service: Service):
        self.service = service

    def start(self) -> None:
        """Begin to watch; the service runs."""
        self.service.run_in_background(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self.service.is_leader:
                try:
                    await self.look()
                except asyncio.CancelledError:
                    raise
                except Exception as error:
                    log.error("the mirrors could not be looked after: %s", error)

    async def look(self) -> None:
        """Judge every mirror, and record an event for each whose health has changed."""
        now = self.service.clock.now()
        if not await self.service.db.read(_has_news, now):
            return

        def after(turns: list[Turn]) -> None:
            for turn in turns:
                self.service.hub.publish(turn.event)
                if turn.verdict.well:
                    log.warning("mirror %s is well again", turn.name)
                else:
                    log.warning(
                        "mirror %s is unhealthy (%s): %s",
                        turn.name,
                        turn.verdict.word,
                        turn.verdict.why,
                    )

        await self.service.db.write(_turn, now, then=after)


def judge_mirrors(conn: Connection, now: float) -> list[tuple[Fields, mirror_watch.MirrorHealth]]:
    """Return the mirrors in use, by name, each with its health."""
    every = mirrors.list_all(conn)
    needed = mirror_watch.settled(conn, now) if every else 0
    return [(row, mirror_watch.judge_mirror(row, now, needed)) for row in every]


def _has_news(conn: Connection, now: float) -> bool:
    return any(
        verdict.word != row["watch"].get("health") for row, verdict in judge_mirrors(conn, now)
    )


def _turn(conn: Connection, now: float) -> list[Turn]:
    turns = []
    for row, verdict in judge_mirrors(conn, now):
        before = row["watch"].get("health")
        if verdict.word == before:
            continue
        # A silent mirror has been silent since it was last heard from.
        since = row["seen_at"] if verdict.word == "silent" else now
        mirror_watch.update_watch(conn, row["id"], health=verdict.word, since=since)
        was_well = before in (None, mirror_watch.OK, mirror_watch.NEVER)
        if verdict.well and was_well:
            continue
        kind = "mirror.healthy" if verdict.well else "mirror.unhealthy"
        data = {"site": row["site"]}
        if not verdict.well:
            data |= {"word": verdict.word, "reason": verdict.why, "since": since}
        turns.append(Turn(row["name"], verdict, events.add(conn, now, kind, row["name"], data)))
    return turns
