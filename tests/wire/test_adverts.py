from beacon_ota.wire import adverts


def test_an_ibeacon_frame_is_what_phones_look_for():
    data = adverts.build_ibeacon(bytes(range(20)), -59)
    assert len(data) == 30
    assert data[:9] == b"\x02\x01\x06\x1a\xff\x4c\x00\x02\x15"
    assert data[9:29] == bytes(range(20)) and data[29] == 0xC5


def test_progress():
    assert adverts.build_progress(0x2F) == b"\x04\xff\x59\x00\x2f"
    assert adverts.build_progress(0xFF)[-1] == 0xFF
