"""Checks whether an attempt may go on: it has no result yet, and nothing has called it off."""

from beacon_ota.orchestrator.core.fleet_records import BeaconState
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.rollout.decide import is_other_board, may_continue
from beacon_ota.orchestrator.rollout.types import Attempt


def check_may_continue(service: Service, attempt: Attempt, node: BeaconState) -> None:
    """Refuse to continue an attempt that has a result, or was called off.

    Raises:
        Problem: 409 ``attempt_over`` or ``device_type_mismatch``; 410 ``rollout_halted`` or
            ``mirror_lease``. Either makes the beacon stop before it boots the release.
    """
    if attempt.result is not None:
        raise Problem(409, "attempt_over", "the attempt has ended", found=attempt.id)
    entry = service.fleet.rollouts.get(attempt.rollout_id)
    release = service.fleet.releases[attempt.firmware_id]
    board = release.row["device_type"]
    if attempt.rebooting_at is None and is_other_board(node.beacon, board):
        raise Problem(
            409,
            "device_type_mismatch",
            "the release is for another board",
            found=node.beacon.said_type or node.beacon.device_type,
            expected=board,
        )
    if entry is None:
        raise halted_problem("over", attempt)
    channel = node.beacon.open_channel
    if not may_continue(entry.state.status, release.state, attempt, channel=channel):
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
    """Return the refusal (410) for an attempt whose rollout is in a state that stops it."""
    return Problem(410, "rollout_halted", f"the rollout is {state}", found=attempt.rollout_id)
