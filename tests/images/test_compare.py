"""Two releases side by side: sectors that move, and the files that they hold."""

import pytest

from beacon_ota.errors import InputError
from beacon_ota.images import blocks, compare, release, synthetic

CORE = synthetic.app_image(8192)
TEXTS = {
    "main.py": b"import ota.agent\n",
    **{f"m{n}.py": b"def f():\n" + b"    print(%d)\n" % n * 90 for n in range(20)},
}


def build(texts, version="1.0.0", core=CORE, like=None, board="esp32c3") -> bytes:
    return release.build_release(core, texts, version, board, insecure=True, like=like)


FIRST = build(TEXTS)


def test_a_change_in_a_module_is_named_with_its_sectors():
    after = build({**TEXTS, "m7.py": b"x = 1\n" * 200}, "1.0.1", like=FIRST)
    found = compare.compare_releases(FIRST, after)
    assert found.same_core
    assert [(one.name, one.how) for one in found.files] == [
        ("app.json", "changed"),
        ("m7.mpy", "changed"),
    ]
    app = len(CORE) // 4096
    assert found.files[0].sectors == (app,)
    moved = found.files[1]
    assert moved.sectors and set(moved.sectors) <= set(found.fetched)
    assert moved.before == len(release.parse_release(FIRST).files["m7.mpy"])
    assert found.parts[app] >= ("app.json", compare.FOLDERS)
    assert all("m7.mpy" in found.parts[sector] for sector in moved.sectors)
    assert found.cost.fetched == 4096 * len(found.fetched) + blocks.index_size(len(after))
    assert found.cost.written == len(found.fetched) + 1  # and the image's first
    assert found.full.fetched == len(after)


def test_files_that_come_and_go():
    texts = {name: text for name, text in TEXTS.items() if name != "m3.py"}
    after = build({**texts, "new.py": b"y = 2\n" * 100}, "1.0.1", like=FIRST)
    hows = {
        one.name: (one.how, one.before, one.after)
        for one in compare.compare_releases(FIRST, after).files
    }
    assert hows["m3.mpy"][0] == "gone" and hows["m3.mpy"][2] is None
    assert hows["new.mpy"][0] == "new" and hows["new.mpy"][1] is None


def test_files_that_only_moved():
    other = build({**TEXTS, "a.py": b"z = 3\n" * 500})  # laid out anew: all others make room
    hows = {one.name: one.how for one in compare.compare_releases(FIRST, other).files}
    assert hows["m5.mpy"] == "moved" and hows["a.mpy"] == "new"


def test_another_core_is_said():
    found = compare.compare_releases(FIRST, build(TEXTS, core=synthetic.app_image(8192, seed="2")))
    assert not found.same_core
    assert (compare.CORE,) in found.parts.values()


def test_releases_for_different_boards_are_not_compared():
    with pytest.raises(InputError) as caught:
        compare.compare_releases(FIRST, build(TEXTS, board="esp32c3-8mb"))
    assert caught.value.code == "device_type"


def test_every_sector_says_what_it_holds():
    places = compare.locate_parts(FIRST, release.parse_release(FIRST))
    assert places[0] == {compare.CORE}
    named = set().union(*places.values())
    assert {"app.json", "m0.mpy", compare.FOLDERS} <= named
