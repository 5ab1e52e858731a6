from beacon_ota.wire.shapes import clip_text, is_hex, is_number


def test_clip_cuts_between_characters():
    assert clip_text("abc", 3) == "abc"
    assert clip_text("abcd", 3) == "abc"
    assert clip_text("aéé", 4) == "aé"
    assert clip_text("aéé", 3) == "aé"
    assert clip_text("€", 2) == ""
    assert clip_text("", 0) == ""


def test_hex_and_numbers():
    assert is_hex("0af9", 4) and is_hex("", 0)
    for bad in ("0AF9", "0af", "0af9 ", "0xf9", None, 5, b"0af9"):
        assert not is_hex(bad, 4), bad
    assert is_number(0, 0, 5) and is_number(5, 0, 5)
    for bad in (-1, 6, True, False, 1.0, "1", None):
        assert not is_number(bad, 0, 5), bad
