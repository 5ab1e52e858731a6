# heap: 1M
# Settings, journal, known-bad images, on the NVS of a chip in RAM.


from mp import chip as c

CHIP = c.Chip(c.layout(slot=1))
c.modules(CHIP)

import journal  # noqa: E402
import store  # noqa: E402
from ota import known  # noqa: E402


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
    assert s.policy("poll_s") == 5 and s.policy("stall_s") == 7 and s.policy("trial_s") == 840
    assert s.policy("offline_ok") == 1 and s.policy("give_up_s") == 300
    for junk in (b"", b"[]", b"5", b"{", b"null", bytes(2000)):
        assert fresh(policy=junk).policy("poll_s") == 300


def test_every_policy_default_is_within_its_bounds():
    for name in store.POLICY:
        default, low, high = store.POLICY[name]
        assert low <= default <= high, name


def test_journal_ring():
    s = fresh()
    j = journal.Journal(s)
    assert j.since() == [] and j.head() == 0
    for i in range(11):
        j.write("wifi", "drop", "no %d" % i)
    entries = journal.Journal(store.Store()).since()
    assert [e[0] for e in entries] == list(range(4, 12))
    assert entries[-1][2:] == ["wifi", "drop", "no 10"]


def test_journal_is_delivered_once():
    s = fresh()
    j = journal.Journal(s)
    j.write("a", "b")
    j.write("a", "c")
    j.acked(1)
    assert [e[0] for e in j.since()] == [2]
    j.acked(99)  # a number it cannot know
    j.acked(0)
    assert [e[0] for e in j.since()] == [2]
    j.acked(2)
    assert j.since() == [] and journal.Journal(store.Store()).since() == []
    j.write("a", "d")
    assert [e[0] for e in j.since()] == [3]
    assert [e[0] for e in j.since(1)] == [2, 3]


def test_journal_says_the_same_thing_once():
    s = fresh()
    j = journal.Journal(s)
    for _ in range(5):
        j.write("ble", "failed", "x" * 200)
    assert len(j.since()) == 1 and len(j.since()[0][4]) == 80
    j.acked(1)
    j.write("ble", "failed", "x" * 200)
    assert len(j.since()) == 1


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
    assert [e[0] for e in journal.Journal(s).since()] == [4]


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
    assert j.since() == [
        [8, 0, "wifi", "handshake_timeou", "x"],
        [9, 0, "boot", "crash", "y" * 80],
        [10, 0, "a", "b", "nul \ufffd here"],
    ]
    j.acked(10)
    assert j.since() == [] and journal.Journal(s).since() == []


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
    assert stored[0] is None and [e[2:] for e in j.since()] == [e[2:] for e in stored if e]


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
        assert [e[4] for e in j.since()] == ["one", "two"]
        assert [e[0] for e in j.since()] == [1, 2]
        j.write("wifi", "no_ap", "three")
        j.acked(2)
        assert [e[0] for e in journal.Journal(store.Store()).since()] == [3]
        # Stage 0 counts from the ring.
        CHIP.store("ota_0", c.image({"x": "y"}))
        CHIP.boot(1)
        scope = CHIP.start()
        c.modules(CHIP)
        scope["note"]("crash", "four")
        assert [e[0] for e in journal.Journal(store.Store()).since()] == [3, 4]


def test_journal_acknowledgement_beyond_the_ring_hides_nothing():
    for ack in (99, (1 << 31) - 1, -5):
        s = fresh(jrn_ack=ack, journal3=b'[3, 0, "wifi", "no_ap", "one"]')
        j = journal.Journal(s)
        if ack > 0:
            assert j.since() == []
        j.write("wifi", "no_ap", "two")
        assert journal.Journal(store.Store()).since()[-1][:1] == [4]
        j.acked(4)
        assert journal.Journal(store.Store()).since() == []


def test_journal_comes_up_on_a_full_nvs_that_is_damaged():
    for left in ({"jrn_ack": 99}, {"journal7": b'[9999999999, 0, "boot", "crash", ""]'}):
        s = fresh(**left)
        CHIP.nvs_full = True
        j = journal.Journal(s)
        j.write("a", "b")
        j.since()
        CHIP.nvs_full = False


def test_journal_goes_on_when_nvs_is_full():
    s = fresh()
    j = journal.Journal(s)
    CHIP.nvs_full = True
    j.write("a", "b")
    CHIP.nvs_full = False
    assert j.head() == 0
    j.write("a", "b")
    assert j.head() == 1


def test_stage_0_writes_into_the_same_ring():
    s = fresh()
    j = journal.Journal(s)
    j.write("wifi", "drop", "one")
    CHIP.store("ota_0", c.image({"x": "y"}))
    CHIP.boot(1)
    scope = CHIP.start()
    c.modules(CHIP)
    scope["note"]("crash", "two")
    j = journal.Journal(store.Store())
    assert [e[2:] for e in j.since()] == [["wifi", "drop", "one"], ["boot", "crash", "two"]]
    j.write("wifi", "drop", "three")
    assert [e[0] for e in j.since()] == [1, 2, 3]


def test_known_bad_images():
    s = fresh()
    names = ["%064x" % i for i in range(6)]
    assert not known.bad(s, names[0])
    for name in names:
        known.remember(s, name)
        known.remember(s, name)
    assert [known.bad(s, name) for name in names] == [False, False, True, True, True, True]
    assert len(CHIP.nvs[("beacon", "bad_sha")]) == 128
    assert not known.bad(fresh(bad_sha=b"short"), names[0])
