"""Tells whether an attempt may go on: it has not ended, and nothing has called it off."""

from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.view import Node
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.rollout.decide import is_other_board, may_go_on
from beacon_ota.orchestrator.rollout.types import Attempt


def check_may_continue(service: Service, attempt: Attempt, node: Node) -> None:
    """Refuse to go on with an attempt that is over (409) or was called off (410)."""
    if attempt.result is not None:
        raise Problem(409, "attempt_over", "the attempt has ended", found=attempt.id)
    entry = service.view.entries.get(attempt.rollout_id)
    release = service.view.releases[attempt.firmware_id]
    board = release.row["device_type"]
    if attempt.rebooting_at is None and is_other_board(node.facts, board):
        raise Problem(
            409,
            "device_type_mismatch",
            "the release is for another board",
            found=node.facts.said_type or node.facts.device_type,
            expected=board,
        )
    if entry is None:
        raise halted_problem("over", attempt)
    channel = node.facts.open_channel
    if not may_go_on(entry.state.status, release.state, attempt, channel=channel):
        raise halted_problem(entry.state.status.value, attempt)
    begun = attempt.taken_at is not None or attempt.rebooting_at is not None
    if not begun and service.lease is not None and service.lease.is_over():
        raise Problem(
            410,
            "mirror_lease",
            "this mirror has been without its primary for too long to hand anything out",
            found=attempt.id,
        )


def halted_problem(state: str, attempt: Attempt) -> Problem:
    return Problem(410, "rollout_halted", f"the rollout is {state}", found=attempt.rollout_id)
