"""Staged rollouts as pure decisions: values in, values out, no clock, no I/O.

    rollout = Rollout(plan)                                      compiled once, cheap to ask
    state = begin(rollout, start_at)
    decide([Live(rollout, state, release_state), …newest first], beacon, now,
           attempts=…, place=places.of(beacon.site), busy=…)     -> Decision, in microseconds
    may_go_on(status, release_state, attempt, channel=…)         -> False: answer 409 or 410
    lost(rollout, attempts, now, listening_since=…)              -> attempts to end as lost
    expired(rollout, attempts, now), withdrawn(attempts)         -> attempts to end otherwise
    tally(rollout, state, beacons, attempts, seen, now)          -> Tally, from unique outcomes
    advance(rollout, state, tally, now)                          -> transitions
    apply(state, transition)                                     -> state
    pause, resume, halt, abort, step                             -> transitions, by hand
    due(rollout, state, tally, now)                              -> when to look again
    judge(rollout, state, tally, wave, now)                      -> what a wave waits for
    draw_id(plan, beacons, salt)                                 -> a rollout id with fair stages
    preview(rollout, beacons, places, start_at)                  -> Timeline, before it starts
    parse(data), dump(plan)                                      the form people write
    Places(sites), parse_window(text, zone), next_window(window, now)
    poll_delay(beacon_id, now, until=…)                          -> seconds, jittered

Types are in ``types``; docs/rollouts.md says what they mean.
"""
