from beacon_ota.wire import offer

ID = "507f1f77bcf86cd799439011"


def doc(**changes):
    fields = {
        "firmware_id": ID,
        "version": "1.2.3",
        "checksum": "ab" * 32,
        "size": 1048576,
        "download_url": "/firmwares/507f1f77bcf86cd799439011/download?attempt=" + ID,
        "required": False,
        "description": "Fix nonce expiration bug",
        "attempt_id": ID,
        "manifest": None,
        "poll_after_s": 60,
        "server_time": 1735689085,
    }
    for name in changes:
        fields[name] = changes[name]
    return fields


def refused(fields):
    try:
        offer.check_offer(fields)
    except offer.OfferError as error:
        return error.field
    raise AssertionError(fields)


def test_offers():
    offer.check_offer(doc())
    offer.check_offer(doc(required=True, manifest={"payload": ""}, not_before=5, not_after=9))
    offer.check_offer(doc(unknown=[1, 2]))
    offer.check_offer(doc(size=1 << 24, version="1.2.4-security"))


def test_missing_fields():
    for name in ("firmware_id", "version", "checksum", "size", "download_url", "required"):
        fields = doc()
        del fields[name]
        assert refused(fields) == name


def test_wrong_types_are_named():
    for name, values in (
        ("firmware_id", (None, 5, ID.upper(), ID + "0")),
        ("attempt_id", (None, "", [ID])),
        ("version", (None, 1, "latest", {})),
        ("checksum", (None, "ab" * 31, "AB" * 32, 7)),
        ("size", (None, 0, -1, "5", 1.5, True, (1 << 24) + 1, 1 << 90)),
        ("required", (None, 0, 1, "false")),
        ("manifest", ("text", 5, [])),
        ("not_before", (None, -1, "5", True, 1 << 60)),
        ("not_after", (1.0,)),
        ("poll_after_s", ("60",)),
        ("server_time", (None,)),
    ):
        for value in values:
            assert refused(doc(**{name: value})) == name, (name, value)
    for other in (None, [], 5, "x"):
        assert refused(other) == "body"


def test_only_a_path_on_the_same_server():
    for bad in (
        None,
        5,
        "",
        "/",
        "firmwares/x",
        "http://other/x",
        "//other/x",
        "/a b",
        "/a\r\nHost: x",
        "/é",
        "/" + "a" * 200,
    ):
        assert refused(doc(download_url=bad)) == "download_url", bad
