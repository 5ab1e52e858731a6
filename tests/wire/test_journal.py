from beacon_ota.wire import journal, report

HALF = b"[\xed\xa0\x80]"  # half a surrogate pair, as MicroPython writes it


def test_good_entries_are_left_as_they_are():
    for entry in (
        [1, 0, "boot", "crash", "x" * 80],
        [journal.MAX_SEQ, journal.MAX_UTC, "a", "b" * 16, ""],
        [7, 1735689085, "wifi", "no_ap", "\u00e9" * 80],
    ):
        assert journal.repair_entry(entry) == entry


def test_what_keeps_its_sense_is_cut():
    for entry, kept in (
        ([1, 0, "wifi", "handshake_timeout", ""], [1, 0, "wifi", "handshake_timeou", ""]),
        ([1, 0, "WiFi", "no AP", ""], [1, 0, "wifi", "no_ap", ""]),
        ([1, 0, "a", "b", "x" * 81], [1, 0, "a", "b", "x" * 80]),
        ([1, 0, "a", "b", "x\0y\nz"], [1, 0, "a", "b", "x\ufffdy\ufffdz"]),
        ([1, -5, "a", "b", ""], [1, 0, "a", "b", ""]),
        ([1, 1.5, "a", "b", ""], [1, 0, "a", "b", ""]),
        ([1, 1 << 60, "a", "b", ""], [1, 0, "a", "b", ""]),
        ([1, None, "a", "b", ""], [1, 0, "a", "b", ""]),
        ((1, 2, "a", "b", "c", "something new"), [1, 2, "a", "b", "c"]),
    ):
        assert journal.repair_entry(entry) == kept, entry


def test_what_says_nothing_is_dropped():
    for entry in (
        None,
        5,
        "entry",
        {},
        [],
        [1, 0, "a", "b"],
        [0, 0, "a", "b", ""],
        [-1, 0, "a", "b", ""],
        [1 << 31, 0, "a", "b", ""],
        [True, 0, "a", "b", ""],
        ["1", 0, "a", "b", ""],
        [1.0, 0, "a", "b", ""],
        [1, 0, "", "b", ""],
        [1, 0, "a", "???", ""],
        [1, 0, None, "b", ""],
        [1, 0, "a", [], ""],
        [1, 0, "a", "b", None],
        [1, 0, "a", "b", 5],
    ):
        assert journal.repair_entry(entry) is None, entry


def test_half_a_surrogate_pair():
    try:
        text = HALF.decode("utf-8", "surrogatepass")
    except (TypeError, NotImplementedError, UnicodeError):  # MicroPython makes none
        return
    assert journal.repair_entry([1, 0, "a", "b", text]) == [1, 0, "a", "b", "[\ufffd]"]
    assert journal.repair_entry([1, 0, text, "b", ""]) is None


def test_words():
    assert report.is_word("no_slot") and report.is_word("x" * 16) and report.is_word("80211")
    for value in ("", "x" * 17, "No", "a b", "\u00e9", None, 5, ["a"]):
        assert not report.is_word(value)
