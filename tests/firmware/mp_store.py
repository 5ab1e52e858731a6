# heap: 1M
# Settings, journal, known-bad images, on the NVS of a chip in RAM.


from mp import chip as c

CHIP = c.Chip(c.layout(slot=1))
c.modules(CHIP)

import journal  # noqa: E402
import store  # noqa: E402
from ota import denylist  # noqa: E402


def fresh(**nvs):
    CHIP.nvs.clear()
    CHIP.ops = 0
    CHIP.cut = -1
    for key in nvs:
        CHIP.nvs[("beacon", key)] = nvs[key]
    return store.Store()


def test_what_is_missing_reads_as_its_default():
    s = fresh()
    assert s.blob("beacon_key") == b"" and s.text("orch_url", "x") == "x"
    assert s.number("utc_off") == 0 and s.number("crashes", 3) == 3
    assert s.record("attempt") is None


def test_what_is_wrong_reads_as_missing():
    s = fresh(orch_url=5, utc_off=b"5", attempt=b"{", beacon_id=b"\xff\xfe", wifi_ssid=b"x" * 129)
    assert s.text("orch_url") == "" and s.number("utc_off") == 0
    assert s.record("attempt") is None and s.text("beacon_id") == "" and s.text("wifi_ssid") == ""


def test_round_trips():
    s = fresh()
    s.put("a", b"\x00\xff")
    s.put("b", "é")
    s.put("c", -5)
    s.put("d", {"x": [1, 2]})
    assert s.blob("a") == b"\x00\xff" and s.text("b") == "é" and s.number("c") == -5
    assert s.record("d") == {"x": [1, 2]}
    for key in "abcd":
        s.put(key, None)
        s.put(key, None)  # not there: nothing to do
    assert CHIP.nvs == {}


# A cut anywhere while a blob is replaced, on a chip that then loses the blob: ESP-IDF does when the
# new data are written and their index is not.
def test_a_blob_that_is_replaced_is_never_lost():
    for cut in range(4):
        s = fresh(beacon_key=b"old" * 10, site=b"x")
        CHIP.cut = cut
        try:
            s.put("beacon_key", b"new" * 10)
            assert cut == 3
        except c.Cut:
            if cut == 1:
                CHIP.nvs.pop(("beacon", "beacon_key"))
        CHIP.cut = -1
        s = store.Store()
        assert s.blob("beacon_key") == (b"old" if cut == 0 else b"new") * 10, cut
        assert sorted(k for _, k in CHIP.nvs) == ["beacon_key", "site"]


def test_the_same_value_again_writes_nothing():
    s = fresh(site=b"x")
    s.put("site", "x")
    assert CHIP.ops == 0
    s.put("fresh", "y")
    assert CHIP.ops == 1


def test_policy_is_clamped():
    s = fresh(policy=b'{"poll_s": 1, "stall_s": 7, "trial_s": 99999, "offline_ok": "x", "n": 1}')
    assert s.policy("poll_s") == 5 and s.policy("stall_s") == 7 and s.policy("trial_s") == 720
    assert s.policy("offline_ok") == 1 and s.policy("give_up_s") == 300
    for junk in (b"", b"[]", b"5", b"{", b"null", bytes(2000)):
        assert fresh(policy=junk).policy("poll_s") == 300


def test_every_policy_default_is_within_its_bounds():
    for name in store.POLICY:
        default, low, high = store.POLICY[name]
        assert low <= default <= high, name
    for name in ("s", "poll", "nothing"):
        try:
            raise AssertionError(store.POLICY[name])
        except KeyError:
            pass


def test_journal_ring():
    s = fresh()
    j = journal.Journal(s)
    assert j.entries_since() == [] and j.newest == 0
    for i in range(11):
        j.write("wifi", "drop", "no %d" % i)
    entries = journal.Journal(store.Store()).entries_since()
    assert [e[0] for e in entries] == list(range(4, 12))
    assert entries[-1][2:] == ["wifi", "drop", "no 10"]


def test_journal_is_delivered_once():
    s = fresh()
    j = journal.Journal(s)
    j.write("a", "b")
    j.write("a", "c")
    j.acknowledge(1)
    assert [e[0] for e in j.entries_since()] == [2]
    j.acknowledge(99)  # a number it cannot know
    j.acknowledge(0)
    assert [e[0] for e in j.entries_since()] == [2]
    j.acknowledge(2)
    assert j.entries_since() == [] and journal.Journal(store.Store()).entries_since() == []
    j.write("a", "d")
    assert [e[0] for e in j.entries_since()] == [3]
    assert [e[0] for e in j.entries_since(1)] == [2, 3]


def test_journal_says_the_same_thing_once():
    s = fresh()
    j = journal.Journal(s)
    for _ in range(5):
        j.write("ble", "failed", "x" * 200)
    assert len(j.entries_since()) == 1 and len(j.entries_since()[0][4]) == 80
    j.acknowledge(1)
    j.write("ble", "failed", "x" * 200)
    assert len(j.entries_since()) == 1


def test_journal_reads_rubbish_as_nothing():
    s = fresh(
        journal0=b"{",
        journal1=b"[1]",
        journal2=b'["1", 0, "a", "b", ""]',
        journal3=b'[3, 0, "a", "b", null]',
        journal4=b'[4, 0, "a", "b", "ok"]',
        journal5=7,
        journal6=b'[-6, 0, "a", "b", ""]',
    )
    assert [e[0] for e in journal.Journal(s).entries_since()] == [4]


# What older releases, stage 0 or damaged flash left behind is delivered as the contract has it.
def test_journal_delivers_only_what_keeps_to_the_contract():
    s = fresh(
        journal0=b'[8, -5, "wifi", "handshake_timeout", "x"]',
        journal1=b'[9, 99999999999999, "Boot", "crash", "' + b"y" * 90 + b'"]',
        journal2=b'[10, 1.5, "a", "b", "nul \\u0000 here"]',
        journal3=b'[11, 0, "", "b", ""]',
        journal4=b'[12, 0, "a", "b"]',
        journal5=b'[10, 0, "a", "again", ""]',
        journal6=b'[12.5, 0, "a", "b", ""]',
    )
    j = journal.Journal(s)
    assert j.entries_since() == [
        [8, 0, "wifi", "handshake_timeou", "x"],
        [9, 0, "boot", "crash", "y" * 80],
        [10, 0, "a", "b", "nul \ufffd here"],
    ]
    j.acknowledge(10)
    assert j.entries_since() == [] and journal.Journal(s).entries_since() == []


def test_journal_stores_only_what_keeps_to_the_contract():
    s = fresh()
    j = journal.Journal(s)
    j.write("wifi", "handshake_timeout")
    j.write("task", "two words", "a\nb")
    j.write("task", "x", "z" * 500)
    j.write("", "x")
    j.write("x", "???")
    j.write("x", "y", None)
    stored = [s.record("journal%d" % i) for i in range(8)]
    assert [e[2:] for e in stored if e] == [
        ["wifi", "handshake_timeou", ""],
        ["task", "two_words", "a\ufffdb"],
        ["task", "x", "z" * 80],
    ]
    assert stored[0] is None and [e[2:] for e in j.entries_since()] == [e[2:] for e in stored if e]


# However odd the characters, stage 0 can read it: it has 512 bytes for an entry.
def test_journal_entries_fit_what_stage_0_reads():
    s = fresh()
    for text in ("\x01" * 90, '"' * 90, "\\" * 90, "\U0001f600" * 90):
        journal.Journal(s).write("a" * 20, "b" * 20, text)
    for key in CHIP.nvs:
        assert len(CHIP.nvs[key]) < 512, key


def test_journal_numbers_that_came_to_their_end_begin_again():
    for last in (1 << 31, (1 << 31) - 1, 1 << 60):
        s = fresh(
            jrn_ack=4,
            journal4=b'[4, 0, "wifi", "no_ap", "delivered"]',
            journal5=b'[5, 0, "wifi", "no_ap", "one"]',
            journal7=b'[%d, 0, "boot", "crash", "two"]' % last,
        )
        j = journal.Journal(s)
        assert [e[4] for e in j.entries_since()] == ["one", "two"]
        assert [e[0] for e in j.entries_since()] == [1, 2]
        j.write("wifi", "no_ap", "three")
        j.acknowledge(2)
        assert [e[0] for e in journal.Journal(store.Store()).entries_since()] == [3]
        # Stage 0 counts from the ring.
        CHIP.store("ota_0", c.image({"x": "y"}))
        CHIP.boot(1)
        scope = CHIP.start()
        c.modules(CHIP)
        scope["journal_write"]("crash", "four")
        assert [e[0] for e in journal.Journal(store.Store()).entries_since()] == [3, 4]


def test_journal_acknowledgement_beyond_the_ring_hides_nothing():
    for ack in (99, (1 << 31) - 1, -5):
        s = fresh(jrn_ack=ack, journal3=b'[3, 0, "wifi", "no_ap", "one"]')
        j = journal.Journal(s)
        if ack > 0:
            assert j.entries_since() == []
        j.write("wifi", "no_ap", "two")
        assert journal.Journal(store.Store()).entries_since()[-1][:1] == [4]
        j.acknowledge(4)
        assert journal.Journal(store.Store()).entries_since() == []


def test_journal_comes_up_on_a_full_nvs_that_is_damaged():
    for left in ({"jrn_ack": 99}, {"journal7": b'[9999999999, 0, "boot", "crash", ""]'}):
        s = fresh(**left)
        CHIP.nvs_full = True
        j = journal.Journal(s)
        j.write("a", "b")
        j.entries_since()
        CHIP.nvs_full = False


def test_journal_goes_on_when_nvs_is_full():
    s = fresh()
    j = journal.Journal(s)
    CHIP.nvs_full = True
    j.write("a", "b")
    CHIP.nvs_full = False
    assert j.newest == 0
    j.write("a", "b")
    assert j.newest == 1


def test_words_that_are_not_news_are_news_of_a_trial():
    s = fresh()
    j = journal.Journal(s)
    j.write("boot", "self_test", "wifi")
    j.write("boot", "self_test", "wifi")
    assert j.newest == 1
    for _ in (0, 1):
        j.write("boot", "self_test", "wifi", 1)  # the slot was armed after entry 1
        assert [e[0] for e in journal.Journal(store.Store()).entries_since(1)] == [2]


def test_stage_0_writes_into_the_same_ring():
    s = fresh()
    j = journal.Journal(s)
    j.write("wifi", "drop", "one")
    CHIP.store("ota_0", c.image({"x": "y"}))
    CHIP.boot(1)
    scope = CHIP.start()
    c.modules(CHIP)
    scope["journal_write"]("crash", "two")
    j = journal.Journal(store.Store())
    assert [e[2:] for e in j.entries_since()] == [["wifi", "drop", "one"], ["boot", "crash", "two"]]
    j.write("wifi", "drop", "three")
    assert [e[0] for e in j.entries_since()] == [1, 2, 3]


def test_known_bad_images():
    s = fresh()
    names = ["%064x" % i for i in range(6)]
    assert not denylist.contains(s, names[0])
    for name in names:
        denylist.add(s, name)
        denylist.add(s, name)
    assert [denylist.contains(s, name) for name in names] == [False, False, True, True, True, True]
    assert len(CHIP.nvs[("beacon", "bad_sha")]) == 128
    assert not denylist.contains(fresh(bad_sha=b"short"), names[0])
    s = fresh()
    for nothing in (None, "", "ab", 5, "zz" * 32, "AB" * 32, names[0] + "00"):
        denylist.add(s, nothing)
    assert not CHIP.nvs.get(("beacon", "bad_sha"))


# -- an NVS that is full, worn out, or cannot be opened


def broken(mode, **nvs):
    s = fresh(**nvs)
    setattr(CHIP, mode, True)
    return s


def healed():
    CHIP.nvs_full = CHIP.nvs_worn = CHIP.nvs_broken = False
    CHIP.nvs_room = 0
    CHIP.nvs_fails = ()


def refused(act, *args):
    try:
        act(*args)
    except OSError:
        return True
    return False


def test_what_nvs_does_not_take_is_said_and_changes_nothing():
    for mode in ("nvs_full", "nvs_worn"):
        s = broken(mode, beacon_key=b"k" * 32, utc_off=5)
        try:
            for key, value in (("beacon_key", b"n" * 32), ("utc_off", 6), ("new", "x"), ("n", 1)):
                assert refused(s.put, key, value) and not s.try_put(key, value), key
                assert refused(s.put_all, {key: b"x", "site": b"y"})
            assert s.blob("beacon_key") == b"k" * 32 and s.number("utc_off") == 5
            assert sorted(k for _, k in CHIP.nvs) == ["beacon_key", "utc_off"]
            assert s.try_put("utc_off", None) == (mode == "nvs_full")
            assert s.try_put("never_there", None)
        finally:
            healed()


# Room for `spare` and for some of the values: none of them stays, whichever finds none.
def test_a_change_that_fits_only_in_part_is_undone():
    old = {"wifi_ssid": b"old", "wifi_pass": b"secret", "utc_off": 5, "site": b"x"}
    new = {"wifi_ssid": b"new", "wifi_pass": None, "utc_off": 6, "channel": b"beta", "site": b"y"}
    for fails in range(1, 7):
        s = fresh(**old)
        before = dict(CHIP.nvs)
        CHIP.nvs_fails = (fails,)
        try:
            assert refused(s.put_all, new), fails
        finally:
            healed()
        assert CHIP.nvs == before, fails
        store.Store()
        assert CHIP.nvs == before, fails
    s = fresh(**old)
    s.put_all(new)
    assert s.blob("wifi_pass") == b"" and s.number("utc_off") == 6


# Writes and erases fail at random: never an exception but OSError, never half a value.
def test_an_nvs_that_fails_now_and_then():
    for n in range(200):
        s = fresh(attempt=b'{"a": 1}', utc_off=5)
        CHIP.nvs_fails = tuple(i for i in range(30) if (n * 7919 + i * 104729) % 11 < 4)
        try:
            for key, value in (("attempt", {"b": n}), ("utc_off", n), ("attempt", None)):
                s.try_put(key, value)
                assert s.record("attempt") in (None, {"a": 1}, {"b": n})
                assert s.number("utc_off") in (0, 5, n)
                s = store.Store()
                journal.Journal(s).write("a", "b", str(n))
        finally:
            healed()


def test_a_start_on_an_nvs_that_takes_nothing():
    log = bytes((4,)) + b"site" + b"\x00\x00\x01y"
    for mode in ("nvs_full", "nvs_worn", "nvs_broken"):
        for spare in (log, b"rubbish", b"\xff" * 40, log[:-2]):
            try:
                s = broken(mode, spare=spare, site=b"x", policy=b'{"poll_s": 60}')
                s = store.Store()
                j = journal.Journal(s)
                j.write("a", "b")
                assert j.entries_since() == []
                assert s.policy("poll_s") == (300 if mode == "nvs_broken" else 60)
                assert not s.try_put("new", 1)
            finally:
                healed()


def test_a_full_journal_goes_on():
    s = fresh()
    j = journal.Journal(s)
    for i in range(9):
        j.write("a", "b", str(i))
    CHIP.nvs_full = True
    try:
        j.write("a", "c")
    finally:
        healed()
    assert [e[0] for e in j.entries_since()] == list(range(3, 11))


def test_numbers_of_the_journal_are_bounded():
    s = fresh(journal1=b'[4294967297, 0, "a", "b", ""]', jrn_ack=(1 << 31) - 1)
    j = journal.Journal(s)
    assert [e[0] for e in j.entries_since()] == [
        1
    ]  # the last words stay, under a number that counts
    j.write("a", "c")
    j.acknowledge(2)
    assert s.number("jrn_ack") == 2
    s = fresh(jrn_ack=-7)
    assert journal.Journal(s).newest == 0


def test_forgetting_needs_no_room():
    import factory_reset

    given = dict.fromkeys(factory_reset.GIVEN, b"x")
    given["utc_off"] = 5
    for mode in ("nvs_full", "nvs_worn"):
        s = broken(mode, floor=b"1.0.0", **given)
        try:
            assert refused(factory_reset.erase, s) == (mode == "nvs_worn")
        finally:
            healed()
        if mode == "nvs_full":
            assert CHIP.nvs == {("beacon", "floor"): b"1.0.0"}
