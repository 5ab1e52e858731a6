# heap: 1M
# The first boot of the old release after a trial, on a chip in RAM with NVS.

from mp import chip as c
from mp.chip import Chip, layout

esp32, _ = c.modules(Chip(layout(slot=1)))

import store as stores  # noqa: E402
from journal import Journal  # noqa: E402
from ota import returned  # noqa: E402

POWER, RESET, WDT, SOFT = 1, 2, 3, 5
ARMED = {"status": "rebooting", "slot": 1, "armed": True, "attempt_id": "a"}


def boot(about, running=0, full=False):
    chip = Chip(layout(slot=1))
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
    returned.note(store, journal, WDT)
    want = dict(ARMED, back=[WDT, 1])
    assert store.record("attempt") == want
    journal.write("boot", "crash", "of the old release")
    for cause in (POWER, RESET, WDT):
        before = chip.ops
        returned.note(store, Journal(store), cause)
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
        returned.note(store, journal, cause)
        assert store.record("attempt") == about and chip.ops == before


def test_records_from_elsewhere_do_not_keep_it_from_starting():
    for slot in (None, "1", [], {}, 1 << 40, -1):
        chip, store, journal = boot(dict(ARMED, slot=slot))
        returned.note(store, journal, RESET)
        assert store.record("attempt")["back"] == [RESET, 1]
    chip, store, journal = boot(ARMED, full=True)
    returned.note(store, journal, RESET)
    assert store.record("attempt") == ARMED


def test_a_power_cut_loses_neither_the_attempt_nor_the_note():
    cut = 0
    noted = set()
    while True:
        chip, store, journal = boot(ARMED)
        chip.ops, chip.cut = 0, cut
        done = False
        try:
            returned.note(store, journal, WDT)
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
