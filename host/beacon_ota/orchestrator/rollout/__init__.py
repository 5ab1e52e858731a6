"""Staged rollouts as pure decisions: values in, values out, no clock, no I/O.

    rollout = Rollout(plan)                                      compiled once, cheap to ask
    state = initial_state(rollout, start_at)
    decide([ActiveRollout(rollout, state, release_state), …newest first], beacon, now,
           attempts=…, place=places.place_of(beacon.site), busy=…)     -> Decision, in microseconds
    may_continue(status, release_state, attempt, channel=…)      -> False: answer 409 or 410
    lost_attempts(rollout, attempts, now, listening_since=…)     -> attempts to end as lost
    expired_attempts(rollout, …), revocable_attempts(attempts)   -> attempts to end otherwise
    count_outcomes(rollout, state, beacons, attempts, seen, now) -> OutcomeCounts
    advance(rollout, state, counts, now)                         -> transitions
    apply_transition(state, transition)                          -> state
    pause_rollout, …, open_next_stage                            -> transitions, by hand
    next_due_at(rollout, state, counts, now)                     -> when to look again
    judge_stage(rollout, state, counts, wave, now)               -> what a wave waits for
    choose_rollout_id(plan, beacons, salt)                       -> a rollout id with fair stages
    simulate_rollout(rollout, beacons, places, start_at)         -> Timeline, before it starts
    parse_plan(data), dump_plan(plan)                            the form people write
    Places(sites), parse_window(text, zone), next_window(window, now)
    poll_delay(beacon_id, now, until=…)                          -> seconds, jittered

Types are in ``types``; docs/rollouts.md says what they mean.
"""
