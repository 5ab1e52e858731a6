# heap: 1M
# The first boot of the old release after a trial, on a chip in RAM with NVS.

from mp import chip as c
from mp.chip import Chip, layout

esp32, _ = c.modules(Chip(layout(slot=1)))

import store as stores  # noqa: E402
from journal import Journal  # noqa: E402
from ota import otadata, returned, trial  # noqa: E402

POWER, RESET, WDT, SOFT = 1, 2, 3, 5
ARMED = {"status": "rebooting", "slot": 1, "armed": True, "attempt_id": "a"}


def boot(about, running=0, full=False, ota=None):
    chip = Chip(layout(slot=1))
    if ota:
        chip.flash[c.SECTOR : c.SECTOR + 32] = ota
    chip.running = chip.row("ota_%d" % running)
    modules = c.modules(chip)[0]
    stores.NVS = modules.NVS
    returned.Partition = modules.Partition
    store = stores.Store()
    store.put("journal1", [1, 0, "boot", "crash", "of the trial"])
    store.put("attempt", about)
    chip.nvs_full = full
    return chip, store, Journal(store)


def test_the_first_return_is_noted_and_no_other():
    chip, store, journal = boot(ARMED)
    returned.record_return(store, journal, WDT)
    want = dict(ARMED, back=[WDT, 1])
    assert store.record("attempt") == want
    journal.write("boot", "crash", "of the old release")
    for cause in (POWER, RESET, WDT):
        before = chip.ops
        returned.record_return(store, Journal(store), cause)
        assert store.record("attempt") == want and chip.ops == before


def test_what_is_no_return():
    for about, running, cause in (
        (ARMED, 1, RESET),  # the trial itself
        (ARMED, 0, SOFT),  # before the trial
        (dict(ARMED, armed=False), 0, RESET),
        ({"status": "rebooting", "slot": 1}, 0, RESET),
        (dict(ARMED, status="downloading"), 0, RESET),
        (dict(ARMED, status="rolled_back"), 0, RESET),
        ([1, 2], 0, RESET),
        (None, 0, RESET),
        ({"slot": 1}, 0, RESET),
    ):
        chip, store, journal = boot(about, running)
        before = chip.ops
        returned.record_return(store, journal, cause)
        assert store.record("attempt") == about and chip.ops == before


def test_records_from_elsewhere_do_not_keep_it_from_starting():
    for slot in (None, "1", [], {}, 1 << 40, -1):
        chip, store, journal = boot(dict(ARMED, slot=slot))
        returned.record_return(store, journal, RESET)
        assert store.record("attempt")["back"] == [RESET, 1]
    chip, store, journal = boot(ARMED, full=True)
    returned.record_return(store, journal, RESET)
    assert store.record("attempt") == ARMED


# The bootloader has given the release in ota_1 up after three trials.
DEAD = c.entry(2, c.ABORTED, b"\0\0" + b"\xff" * 18)


def noted(chip):
    entries = [otadata.Entry(raw) for raw in chip.entries()]
    return otadata.newest_entry_of(entries, 1, 2).return_cause


def test_where_nvs_takes_nothing_otadata_says_it():
    for cause in (0, POWER, RESET, WDT):
        chip, store, journal = boot(ARMED, full=True, ota=DEAD)
        assert noted(chip) is None
        returned.record_return(store, journal, cause)
        assert noted(chip) == cause and store.record("attempt") == ARMED
        entries = [otadata.Entry(raw) for raw in chip.entries()]
        # Words in the journal are nobody's. The watchdog convicts without them; a reset does not.
        words = [[9, 0, "boot", "self_test", "bluetooth"]]
        v = trial.diagnose_previous_attempt(store.record("attempt"), entries, 0, 2, POWER, words)
        code = {POWER: "power", WDT: "watchdog"}.get(cause, "not_booted")
        assert (v.status, v.code, v.trials) == ("rolled_back", code, 3)
        assert v.image_at_fault() == (cause == WDT)
        # Whatever comes after it is the old release's, NVS as well as it may be.
        chip.nvs_full = False
        before = chip.ops
        for later in (POWER, RESET, WDT):
            returned.record_return(store, journal, later)
        assert chip.ops == before and store.record("attempt") == ARMED


def test_nothing_is_noted_in_an_entry_that_may_boot():
    for state in (c.NEW, c.PENDING, c.VALID):
        chip, store, journal = boot(ARMED, full=True, ota=c.entry(2, state))
        before = chip.ops
        returned.record_return(store, journal, RESET)
        assert chip.ops == before and noted(chip) is None


def test_otadata_that_cannot_be_read_or_written_keeps_nobody_from_starting():
    chip, store, journal = boot(ARMED, full=True, ota=DEAD)
    chip.failing.add("otadata")
    returned.record_return(store, journal, RESET)
    chip, store, journal = boot(ARMED, full=True, ota=DEAD)
    chip.bad_write.add(1)
    returned.record_return(store, journal, RESET)
    assert noted(chip) is None


def test_a_note_that_was_cut_off_in_otadata_tells_only_that_there_was_one():
    for torn in (0, 1):
        chip, store, journal = boot(ARMED, full=True, ota=DEAD)
        chip.cut, chip.torn = chip.ops, torn
        try:
            returned.record_return(store, journal, WDT)
            raise AssertionError("not cut")
        except c.Cut:
            chip.cut = -1
        assert noted(chip) == (-1 if torn else None)
        entries = [otadata.Entry(raw) for raw in chip.entries()]
        v = trial.diagnose_previous_attempt(
            ARMED, entries, 0, 2, POWER, [[9, 0, "boot", "crash", "why"]]
        )
        assert (v.code, v.trials, v.image_at_fault()) == ("power", 0, False)


def test_a_power_cut_loses_neither_the_attempt_nor_the_note():
    cut = 0
    noted = set()
    while True:
        chip, store, journal = boot(ARMED)
        chip.ops, chip.cut = 0, cut
        done = False
        try:
            returned.record_return(store, journal, WDT)
            done = True
        except c.Cut:
            pass
        chip.cut = -1
        found = stores.Store().record("attempt")
        assert found in (ARMED, dict(ARMED, back=[WDT, 1])), (cut, found)
        noted.add("back" in found)
        if done:
            break
        cut += 1
    assert noted == {False, True}
