from ota import schedule as s

NIGHT = 1735700400  # 2025-01-01 03:00:00 UTC


def offer(**fields):
    doc = {"required": False}
    for name in fields:
        doc[name] = fields[name]
    return doc


def test_windows():
    assert s.parse_window("03:00-05:00") == (180, 300)
    assert s.parse_window("23:30-1:15") == (1410, 75)
    assert s.parse_window(" 00:00 - 23:59 ") == (0, 1439)
    for bad in (
        "",
        "03:00",
        "03:00-03:00",
        "3-5",
        "24:00-05:00",
        "03:60-05:00",
        "03:00-05:00-07:00",
        "aa:bb-cc:dd",
        "-1:00-05:00",
        "03:0-05:00",
        "003:00-05:00",
        "03:00–05:00",
    ):
        assert s.parse_window(bad) is None, bad


def test_now_when_nothing_holds_it_back():
    assert s.seconds_until_install(offer(), NIGHT, "", 0) == 0
    assert s.seconds_until_install(offer(not_before=NIGHT, not_after=NIGHT + 60), NIGHT, "", 0) == 0
    assert s.seconds_until_install(offer(not_before=NIGHT - 5), NIGHT, "", 0) == 0


def test_the_servers_window():
    assert s.seconds_until_install(offer(not_before=NIGHT + 100), NIGHT, "", 0) == 100
    assert s.seconds_until_install(offer(not_before=5, not_after=NIGHT), NIGHT, "", 0) == 60


def test_a_window_of_the_server_counts_alone():
    # It knows how the building's clock goes today, which the offset from provisioning does not.
    inside = offer(not_before=NIGHT - 60, not_after=NIGHT + 60)
    for hours, offset in (("03:00-05:00", 600), ("10:00-11:00", 0), ("03:00-03:01", -720)):
        assert s.seconds_until_install(inside, NIGHT, hours, offset) == 0
    assert s.seconds_until_install(offer(not_after=NIGHT + 60), NIGHT, "10:00-11:00", 0) == 0
    assert s.seconds_until_install(offer(not_after=NIGHT), NIGHT, "03:00-05:00", 0) == 60


def test_the_offset_of_the_offer_replaces_the_one_from_provisioning():
    # Sydney, provisioned in July (+10 h), asked in January (+11 h): 16:30 UTC is 03:30 there.
    at = NIGHT + 13 * 3600 + 1800
    assert s.seconds_until_install(offer(), at, "03:00-04:00", 600) == 1800
    assert s.seconds_until_install(offer(utc_off=660), at, "03:00-04:00", 600) == 0
    assert s.seconds_until_install(offer(utc_off=660), at + 1800, "03:00-04:00", 600) == 23 * 3600
    assert s.seconds_until_install(offer(utc_off=0), NIGHT, "03:00-04:00", 600) == 0


def test_the_local_window_holds_back_what_comes_without_one():
    assert s.seconds_until_install(offer(), NIGHT, "03:00-05:00", 0) == 0
    assert s.seconds_until_install(offer(), NIGHT + 7199, "03:00-05:00", 0) == 0
    assert s.seconds_until_install(offer(), NIGHT + 7200, "03:00-05:00", 0) == 22 * 3600
    assert s.seconds_until_install(offer(), NIGHT - 1, "03:00-05:00", 0) == 1
    # Berlin in winter: 03:00 UTC is 04:00 there; New York: 22:00 of the day before.
    assert s.seconds_until_install(offer(), NIGHT, "03:00-05:00", 60) == 0
    assert s.seconds_until_install(offer(), NIGHT, "03:00-05:00", -300) == 5 * 3600
    # Over midnight.
    assert s.seconds_until_install(offer(), NIGHT, "22:00-04:00", 0) == 0
    assert s.seconds_until_install(offer(), NIGHT + 3600, "22:00-04:00", 0) == 18 * 3600
    # The server's start counts first.
    assert s.seconds_until_install(offer(not_before=NIGHT + 7), NIGHT, "03:00-05:00", 0) == 7
    # A window that nobody can read holds nothing back.
    assert s.seconds_until_install(offer(), NIGHT, "garbage", 0) == 0


def test_required_and_timeless_offers_do_not_wait():
    assert (
        s.seconds_until_install(offer(required=True, not_before=NIGHT + 9), NIGHT, "10:00-11:00", 0)
        == 0
    )
    assert s.seconds_until_install(offer(not_before=NIGHT), 0, "10:00-11:00", 0) == 0


def test_every_second_of_a_day():
    for text, opens, closes in (("03:00-05:00", 3, 5), ("22:00-04:00", 22, 4)):
        midnight = NIGHT - 3 * 3600
        for second in range(0, 86400, 97):
            hour = second // 3600
            inside = opens <= hour < closes if opens < closes else hour >= opens or hour < closes
            wait = s.seconds_until_install(offer(), midnight + second, text, 0)
            assert (wait == 0) == inside, (text, second, wait)
            assert (second + wait) % 86400 == opens * 3600 or inside


def test_backoff():
    for n, base in enumerate((2000, 4000, 8000, 16000, 32000)):
        for _ in range(50):
            assert 0.75 * base - 1 <= s.retry_pause(n, 2000) <= 1.25 * base
    assert s.retry_pause(5, 2000) is None
    assert len({s.add_jitter(10000) for _ in range(50)}) > 10


def test_poll_delay():
    assert s.poll_delay(None, 300) == 300
    assert s.poll_delay(60, 300) == 60
    assert s.poll_delay(0, 300) == 5
    assert s.poll_delay(10**9, 300) == 86400
    # A server that offers a failing release for ever does not wear out the flash.
    assert [s.poll_delay(5, 300, n) for n in (1, 2, 3, 7, 50)] == [30, 60, 120, 1920, 1920]
    assert s.poll_delay(4000, 300, 3) == 4000


def test_a_header_that_nothing_signs_delays_by_an_hour_at_most():
    assert s.cap_retry_after(None, 300) is None
    for asked in (0, 60, 3600):
        assert s.cap_retry_after(asked, 300) == asked
    assert s.cap_retry_after(9_999_999, 300) == 3600
    assert s.cap_retry_after(9_999_999, 40_000) == 40_000  # an operator's own choice
