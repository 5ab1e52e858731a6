from beacon_ota.wire import auth, auth_header

NONCE = "00112233aabbccdd"
MAC = "ab" * 32


def test_request_lines():
    text = auth.request_text("GET", "/a?b=c", "b1", 5, NONCE, "e3")
    assert text == b"GET\n/a?b=c\nb1\n5\n00112233aabbccdd\ne3"


def test_answer_lines():
    assert auth.answer_text(NONCE, 204, "e3") == b"00112233aabbccdd\n204\ne3"
    assert auth.rekey_text(NONCE) == b"rekey\n00112233aabbccdd"


def test_header_round_trip():
    value = auth.build_header("beacon-1.x", 1700000000, NONCE, MAC)
    assert value == "Beacon id=beacon-1.x, ts=1700000000, nonce=00112233aabbccdd, mac=" + MAC
    assert auth_header.parse_header(value) == ("beacon-1.x", 1700000000, NONCE, MAC)


def test_other_spellings_are_refused():
    good = auth.build_header("b1", 1700000000, NONCE, MAC)
    for bad in (
        "",
        "Bearer abc",
        good + " ",
        good + ", x=1",
        good.replace("Beacon ", "beacon "),
        good.replace(", ", ","),
        good.replace("id=b1", "id="),
        good.replace("id=b1", "id=b/1"),
        good.replace("id=b1", "id=" + "b" * 65),
        good.replace("ts=1700000000", "ts="),
        good.replace("ts=1700000000", "ts=-5"),
        good.replace("ts=1700000000", "ts=" + "9" * 12),
        good.replace(NONCE, NONCE.upper()),
        good.replace(NONCE, NONCE + "0"),
        good.replace(NONCE, NONCE[:-1] + "g"),
        good.replace(MAC, MAC[:-1]),
        good.replace(MAC, MAC[:-1] + "_"),
        good.replace("mac=", "sig="),
        "Beacon id=" + "x" * 400,
    ):
        assert auth_header.parse_header(bad) is None, bad


def test_identifiers():
    assert auth.is_valid_id("a") and auth.is_valid_id("A-z_0.9") and auth.is_valid_id("x" * 64)
    for bad in ("", "x" * 65, "a b", "a/b", "a\n", "é", "a,b"):
        assert not auth.is_valid_id(bad), bad
