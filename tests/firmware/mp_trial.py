# What a boot says about the attempt before it, case by case as in the table of power cuts, and the
# health check of a release on trial.

from struct import pack

from mp.chip import entry
from ota import otadata as o
from ota import trial

POWER, RESET, WDT = 1, 2, 3
OLD, NEW = 0, 1  # slots
BLANK = b"\xff" * 32


def label(marks):
    return b"\0" * marks + b"\xff" * (20 - marks)


def entries(second, first=None):
    return [o.Entry(first or entry(1, o.VALID)), o.Entry(second)]


def record(status="rebooting", slot=NEW):
    return {"status": status, "slot": slot, "armed": True}


# The verdict of the old release's first boot after the trials, which `cause` began.
def back(second, cause, journal=(), first=None):
    return judged(dict(record(), back=[cause, 7]), second, cause, journal, first)


def judged(about, second, cause, journal=(), first=None):
    v = trial.diagnose_previous_attempt(about, entries(second, first), OLD, 2, cause, list(journal))
    return v.status, v.code, v.trials, v.image_at_fault()


def said(code, stage="boot", seq=7, why="why"):
    return [seq, 0, stage, code, why]


def test_still_on_trial():
    for state in (o.NEW, o.PENDING):
        assert (
            trial.diagnose_previous_attempt(record(), entries(entry(2, state)), NEW, 2, RESET, [])
            is None
        )


def test_confirmed_and_cut_off():
    v = trial.diagnose_previous_attempt(
        record(), entries(entry(2, o.VALID, label(2))), NEW, 2, POWER, []
    )
    assert (v.status, v.trials, v.image_at_fault()) == ("success", 2, False)


def test_the_trials_own_words_come_first():
    dead = entry(2, o.ABORTED, label(2))
    assert back(dead, RESET, [said("crash")]) == ("rolled_back", "crash", 3, True)
    assert back(dead, RESET, [said("crash"), said("self_test")])[1] == "self_test"
    assert back(dead, POWER, [said("crash"), said("drop", "wifi")])[1] == "crash"
    # The last trial was ended by the watchdog, whatever the others died of.
    assert back(dead, WDT, [said("crash")]) == ("rolled_back", "watchdog", 3, True)


def test_what_was_found_out_outlives_the_reset_cause():
    """Written down before anything else, for the next boot after a power cut knows no cause."""
    dead = entry(2, o.ABORTED, label(2))
    assert back(dead, POWER, [said("watchdog")]) == ("rolled_back", "watchdog", 3, True)
    assert back(dead, POWER, [said("crash"), said("watchdog")])[1] == "watchdog"


def test_the_reset_cause_is_the_next_best():
    dead = entry(2, o.ABORTED, label(2))
    assert back(dead, WDT) == ("rolled_back", "watchdog", 3, True)
    assert back(dead, RESET) == ("rolled_back", "crash", 3, True)
    assert back(dead, POWER) == ("rolled_back", "power", 3, False)
    assert back(dead, 0)[1] == "crash"


def test_a_missing_orchestrator_convicts_nobody():
    """Anybody at its address can bring that about."""
    dead = entry(2, o.ABORTED, label(2))
    for detail in ("orchestrator away", "orchestrator away: status 403, not authentic"):
        words = [7, 0, "boot", "self_test", detail]
        assert back(dead, RESET, [words]) == ("rolled_back", "self_test", 3, False)
    words[4] = "refused by the orchestrator"
    assert back(dead, RESET, [words]) == ("rolled_back", "self_test", 3, True)


def test_never_came_as_far_as_python():
    assert back(entry(2, o.ABORTED), RESET) == ("rolled_back", "not_booted", 1, False)
    assert back(entry(2, o.ABORTED), WDT)[1] == "not_booted"
    assert back(entry(2, o.ABORTED), POWER)[1] == "power"
    for lost in (BLANK, entry(2, o.PENDING), entry(2, o.NEW)):
        assert back(lost, RESET) == ("rolled_back", "not_booted", 0, False)
        assert back(lost, POWER) == ("rolled_back", "power", 0, False)
    torn = entry(2, o.NEW)[:20] + b"\xff" * 12
    assert back(torn, POWER)[1] == "power"


def test_what_was_not_armed_is_not_convicted():
    """Whatever otadata and the journal say: it is of an earlier trial, or the old release's own."""
    stale = entry(2, o.ABORTED, label(2))
    for cause in (0, POWER, RESET, WDT):
        for journal in ([], [said("crash")], [said("watchdog")]):
            for back_at in ({}, {"back": [cause, 7]}):
                about = dict({"status": "rebooting", "slot": NEW}, **back_at)
                status, code, trials, guilty = judged(about, stale, cause, journal)
                assert status == "rolled_back" and not trials and not guilty
                assert code == ("power" if cause == POWER else "not_booted")


def test_what_the_old_release_does_after_the_trial_is_its_own():
    dead = entry(2, o.ABORTED, label(2))
    for cause in (POWER, RESET, WDT):  # of later boots of the old release
        # Three power cuts during the trials; then the old release crashed, or hung.
        late = [said("crash", seq=8), said("self_test", seq=9)]
        about = dict(record(), back=[POWER, 7])
        assert judged(about, dead, cause, late) == ("rolled_back", "power", 3, False)
        # And what the trial did is not forgotten for it.
        about = dict(record(), back=[WDT, 7])
        assert judged(about, dead, cause, late) == ("rolled_back", "watchdog", 3, True)
        about = dict(record(), back=[RESET, 7])
        both = [said("self_test", why="bluetooth")] + late
        assert judged(about, dead, cause, both) == ("rolled_back", "self_test", 3, True)
        # It never booted, whatever became of the old release.
        for lost in (BLANK, entry(2, o.NEW), entry(2, o.PENDING)):
            about = dict(record(), back=[RESET, 7])
            assert judged(about, lost, cause, late) == ("rolled_back", "not_booted", 0, False)


def test_a_return_that_nobody_noted_convicts_nobody():
    dead = entry(2, o.ABORTED, label(2))
    for back_at in ({}, {"back": None}, {"back": 5}, {"back": [3]}, {"back": ["3", 7]}):
        for cause in (POWER, RESET, WDT):
            about = dict(record(), **back_at)
            assert not judged(about, dead, cause, [said("crash")])[3]


def test_words_of_a_trial_whose_entry_is_gone():
    """Power failed while the bootloader replaced PENDING by ABORTED: erased, not yet written."""
    assert back(BLANK, POWER, [said("crash")]) == ("rolled_back", "crash", 1, True)
    torn = entry(2, o.ABORTED)[:20] + b"\xff" * 12
    assert back(torn, POWER, [said("self_test")]) == ("rolled_back", "self_test", 1, True)


def test_what_lies_outside_of_the_image_does_not_convict_it():
    dead = entry(2, o.ABORTED, label(2))
    for why in ("wifi", "orchestrator away", "otadata would not confirm"):
        found = back(dead, RESET, [said("self_test", why=why)])
        assert found == ("rolled_back", "self_test", 3, False)
    for why in ("bluetooth", "services", "refused by the orchestrator", ""):
        assert back(dead, RESET, [said("self_test", why=why)])[3]
    assert back(dead, RESET, [said("self_test", why="wifi"), said("crash")])[3]
    # A reset that the port has no name for: by the USB port, mostly.
    assert back(dead, 0) == ("rolled_back", "crash", 3, False)
    assert back(dead, 0, [said("crash")])[3]


def test_rescued():
    v = trial.diagnose_rescue(record(), NEW, [])
    assert (v.status, v.code, v.detail, v.image_at_fault()) == (
        "rolled_back",
        "crash",
        "rescued",
        True,
    )
    for about, other in (
        (record(), OLD),  # of three slots, another one crashed
        (record(), None),
        ({"status": "rebooting", "slot": NEW}, NEW),
        ({"status": "rebooting", "slot": None}, None),
    ):
        v = trial.diagnose_rescue(about, other, [])
        assert (v.status, v.code, v.trials, v.image_at_fault()) == (
            "rolled_back",
            "not_booted",
            0,
            False,
        )
    for last, code in (("watchdog", "watchdog"), ("cause 2", "crash")):
        said = [
            [3, 0, "boot", "rescue", "ota_1: 8 resets, the last by " + last],
            [4, 0, "a", "b", ""],
        ]
        v = trial.diagnose_rescue(record(), NEW, said)
        assert (v.code, v.image_at_fault()) == (code, True) and v.detail.endswith(last), v.detail


def test_a_reset_while_downloading():
    for status in ("downloading", "verifying"):
        for cause, code in ((POWER, "power"), (WDT, "watchdog"), (RESET, "crash")):
            v = trial.diagnose_previous_attempt(record(status), entries(BLANK), OLD, 2, cause, [])
            assert (v.status, v.code, v.image_at_fault()) == ("failed", code, False)


def test_an_end_stays_an_end():
    for status in ("success", "failed", "rolled_back"):
        assert (
            trial.diagnose_previous_attempt(record(status), entries(BLANK), OLD, 2, RESET, [])
            is None
        )


def test_layouts_without_slots():
    v = trial.diagnose_previous_attempt(
        record("downloading"), entries(BLANK, BLANK), -1, 0, POWER, []
    )
    assert v.code == "power"
    assert (
        trial.diagnose_previous_attempt(record(), entries(BLANK, BLANK), -1, 0, RESET, []).code
        == "not_booted"
    )


def test_records_from_elsewhere():
    for junk in ({}, {"status": None}, {"status": 5, "slot": "x"}, {"status": "rebooting"}):
        v = trial.diagnose_previous_attempt(junk, entries(BLANK), OLD, 2, RESET, [])
        assert v.status in ("failed", "rolled_back") and not v.image_at_fault()


def health(**but):
    case = {
        "ble": True,
        "services": True,
        "wifi": True,
        "exchanged": True,
        "refused": False,
        "late": False,
        "offline_ok": 1,
    }
    for name in but:
        assert name in case
        case[name] = but[name]
    return trial.check_health(
        case["ble"],
        case["services"],
        case["wifi"],
        case["exchanged"],
        case["refused"],
        case["late"],
        case["offline_ok"],
    )


def test_health():
    assert health() == (trial.CONFIRM, "")
    assert health(late=True) == (trial.CONFIRM, "")
    for name, word in (("ble", "bluetooth"), ("services", "services"), ("wifi", "wifi")):
        assert health(**{name: False}) == (trial.WAIT, word)
        assert health(late=True, **{name: False}) == (trial.FAIL, word)
        assert health(late=True, exchanged=False, **{name: False}) == (trial.FAIL, word)


def test_an_orchestrator_that_is_away_costs_no_trial():
    assert health(exchanged=False) == (trial.WAIT, "orchestrator away")
    assert health(exchanged=False, late=True) == (trial.CONFIRM, "orchestrator away")
    assert health(exchanged=False, late=True, offline_ok=0) == (trial.FAIL, "orchestrator away")


def test_an_orchestrator_that_refuses_us_does():
    assert health(exchanged=False, refused=True)[0] == trial.WAIT
    assert health(exchanged=False, refused=True, late=True)[0] == trial.FAIL


def test_otadata_as_the_bootloader_reads_it():
    e = o.Entry(entry(1, o.VALID))
    assert e.usable and e.intact and e.trial_marks == 0 and e.slot(2) == 0 and e.slot(3) == 0
    assert not o.Entry(BLANK).intact
    assert not o.Entry(entry(1, o.ABORTED)).usable and o.Entry(entry(1, o.ABORTED)).intact
    assert not o.Entry(pack("<I", 1) + b"\xff" * 28).intact
    assert o.active_index(entries(entry(2, o.NEW))) == 1
    assert o.active_index(entries(entry(1, o.NEW))) == 0  # equal numbers: the first
    assert o.active_index(entries(entry(2, o.ABORTED))) == 0
    assert o.active_index(entries(BLANK, BLANK)) == -1
    assert o.newest_entry_of(entries(entry(3, o.NEW)), 0, 2).seq == 3
    assert o.newest_entry_of(entries(entry(2, o.NEW)), 5, 2) is None
