from beacon_ota.wire import adverts, scan

IDENTITY = bytes(range(20))


def test_the_provisionable_advertisement():
    name = adverts.device_name(b"\x34\x85\x18\xa1\xb2\xc3")
    assert name == b"BLUFI_A1B2C3"
    data = adverts.build_provisionable(name, 3)
    assert data == (
        b"\x02\x01\x06"
        + b"\x03\x03\xff\xff"
        + b"\x0d\x09BLUFI_A1B2C3"
        + b"\x06\x16\xff\xff\xec\x01\x03"
    )
    assert len(data) == 28
    assert scan.read_payloads(data) == {"blufi": True, "name": name, "suites": 3}


def test_everything_fits_its_packet():
    response = adverts.build_progress(100) + adverts.build_status(
        7, "1.2.4-security.rc1+build.2026"
    )
    assert len(response) == adverts.MAX_PAYLOAD
    assert scan.read_payloads(response) == {
        "progress": 100,
        "flags": 7,
        "version": "1.2.4-security.rc1+b",
    }
    assert len(adverts.build_ibeacon(IDENTITY, -59)) <= adverts.MAX_PAYLOAD


def test_positioning_and_status_together():
    found = scan.read_payloads(
        adverts.build_ibeacon(IDENTITY, -59),
        adverts.build_progress(0xFE) + adverts.build_status(adverts.PROVISIONED, "1.2.3"),
    )
    assert found == {
        "ibeacon": IDENTITY,
        "power": -59,
        "progress": 0xFE,
        "flags": 1,
        "version": "1.2.3",
    }


def test_structures_end_at_the_first_that_is_cut_off():
    good = b"\x02\x01\x06"
    for tail in (b"", b"\x05", b"\x05\xff", b"\x05\xff\x59\x00", b"\x00\x02\x01\x06", b"\xff" * 5):
        assert scan.split_structures(good + tail) == [(1, b"\x06")]
    assert scan.split_structures(b"\x01\x0a" + good) == [(0x0A, b""), (1, b"\x06")]
    assert scan.split_structures(b"") == []


def test_other_peoples_data_is_passed_over():
    for payload in (
        b"\x03\xff\x4c\x00",
        adverts.build_structure(0xFF, b"\x4c\x00\x02\x15" + bytes(20)),  # no power
        adverts.build_structure(0xFF, b"\x4c\x00\x02\x15" + bytes(22)),
        adverts.build_structure(0xFF, b"\x4c\x00\x10\x05" + bytes(21)),  # another frame of theirs
        adverts.build_structure(0xFF, b"\x59\x00"),
        adverts.build_structure(0xFF, b"\x59\x00\x65"),  # 101 percent
        adverts.build_structure(0xFF, b"\x59\x00\x64\x00"),
        adverts.build_structure(0xFF, b"\x59\x01\x64"),
        adverts.build_structure(0xFF, b"\x59"),
        adverts.build_structure(0x16, b"\xff\xff\xec\x02\x03"),
        adverts.build_structure(0x16, b"\xff\xff\xec\x01"),
        adverts.build_structure(0xFF, b"\xfe\xff\xbe\x00\x31"),
        adverts.build_structure(0xFF, b"\xff\xff\xbd\x00\x31"),
        adverts.build_structure(0xFF, b"\xff\xff\xbe"),
        adverts.build_structure(0xFF, b"\xff\xff\xbe\x00\xff\xfe"),
        adverts.build_structure(0x16, b"\xff"),
        adverts.build_structure(0x03, b"\x0f\x18"),
        adverts.build_structure(0x03, b"\x00\xff\xff\x00"),  # FFFF only across two entries
    ):
        assert scan.read_payloads(payload) == {}, payload


def test_service_lists():
    for kind in (2, 3):
        assert scan.read_payloads(adverts.build_structure(kind, b"\x0f\x18\xff\xff")) == {
            "blufi": True
        }


def test_what_a_scanner_hands_over_already_taken_apart():
    assert scan.parse_manufacturer(0x0059, b"\x2f") == {"progress": 0x2F}
    assert scan.parse_manufacturer(0xFFFF, b"\xbe\x021.0.0") == {"flags": 2, "version": "1.0.0"}
    assert scan.parse_service_data(0xFFFF, b"\xec\x01\x03") == {"suites": 3}
    assert (
        scan.parse_manufacturer(1, b"\x2f") == {}
        and scan.parse_service_data(1, b"\xec\x01\x03") == {}
    )
