from beacon_ota.wire import versions

# The order that semver.org gives as its example, and the spec's own labels.
LADDER = [
    "0.0.0-0",
    "0.0.0",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.2.3",
    "1.2.4-security",
    "1.2.4",
    "1.10.0",
    "2.0.0-0.3.7",
    "2.0.0--",
    "2.0.0",
    "10.0.0",
]

NOT_SEMVER = [
    "",
    "1",
    "1.2",
    "1.2.3.4",
    "v1.2.3",
    "01.2.3",
    "1.02.3",
    "1.2.03",
    "1.2.3-",
    "1.2.3-01",
    "1.2.3-a..b",
    "1.2.3+",
    "1.2.3+a..b",
    "1.2.3+a+b",
    "1.2.3-ä",
    "1.2.³",
    "-1.2.3",
    "+1.2.3",
    "1.2.3 ",
    " 1.2.3",
    "1.2.3\n",
    "1_0.2.3",
    "1.2.3-" + "a" * 59,
    "9" * 5000 + ".0.0",
    None,
    1,
    1.2,
    b"1.2.3",
    ["1", "2", "3"],
]


def test_ladder_is_in_order():
    for i, a in enumerate(LADDER):
        for j, b in enumerate(LADDER):
            assert versions.compare(a, b) == (i > j) - (i < j), (a, b)


def test_build_metadata_does_not_count():
    assert versions.compare("1.2.3+x.001", "1.2.3") == 0
    assert versions.compare("1.2.3-a+x", "1.2.3-a+y-z") == 0


def test_anything_else_is_refused():
    for text in NOT_SEMVER:
        for call in (lambda t=text: versions.parse(t), lambda t=text: versions.compare("1.0.0", t)):
            try:
                call()
            except ValueError:
                continue
            raise AssertionError(text)


def test_the_longest_version_is_accepted():
    text = "1.2.3-" + "a" * 58
    assert len(text) == versions.MAX
    assert versions.parse(text)[:3] == (1, 2, 3)


def test_the_lowest_is_the_lowest():
    for text in LADDER[1:]:
        assert versions.compare(versions.LOWEST, text) == -1
