"""What of an app's folder goes into a release, and what is said of the rest."""

import shutil

import pytest

from beacon_ota import paths
from beacon_ota.images import app_folder, appfs
from beacon_ota.images.appfs import AppError

MAIN = "from ota import agent\n"
AGENT = "def run():\n    pass\n"


def write(folder, **files):
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def mpy(tmp_path, text="x = 1\n"):
    return appfs.compile_sources({"m.py": text.encode()})["m.mpy"]


def refused(folder, *include):
    with pytest.raises(AppError) as caught:
        app_folder.scan_folder(folder, include)
    return caught.value


def test_folders_of_tools_are_not_looked_into(tmp_path):
    write(
        tmp_path,
        **{
            "main.py": MAIN,
            "lib/a.py": "x = 1\n",
            ".venv/lib/other.py": "x = 1\n",
            "tools/pyvenv.cfg": "home = /usr\n",
            "tools/lib/other.py": "x = 1\n",
            ".ipynb_checkpoints/main-checkpoint.py": "x = 1\n",
            "lib/__pycache__/a.cpython-311.pyc": "x",
            ".git/hooks/pre.py": "x = 1\n",
            ".main.py.swp": "x",
            "README.md": "words",
            "fonts/small.bin": "x",
        },
    )
    found = app_folder.scan_folder(tmp_path)
    assert list(found.sources) == ["lib/a.py", "main.py"] and not found.files
    assert found.left == {
        ".git/": "hidden",
        ".ipynb_checkpoints/": "hidden",
        ".main.py.swp": "hidden",
        ".venv/": "hidden",
        "README.md": "not a module; --include takes it",
        "fonts/small.bin": "not a module; --include takes it",
        "lib/__pycache__/": "made by tools",
        "tools/": "a virtual environment",
    }


def test_a_pattern_takes_further_files(tmp_path):
    write(tmp_path, **{"main.py": MAIN, "fonts/small.bin": "x", "logo.json": "{}"})
    found = app_folder.scan_folder(tmp_path, ["fonts/*", "*.json"])
    assert found.files == {"fonts/small.bin": b"x", "logo.json": b"{}"}
    assert refused(tmp_path, "*.png").found == "*.png"


def test_compiled_modules_go_in_as_they_are_when_a_beacon_can_load_them(tmp_path):
    code = mpy(tmp_path)
    write(tmp_path, **{"main.py": MAIN, "lib/sensor.mpy": code})
    assert app_folder.scan_folder(tmp_path).files == {"lib/sensor.mpy": code}
    native = code[:2] + bytes([code[2] | 11 << 2]) + code[3:]
    wide = code[:3] + b"\x3f" + code[4:]
    for damaged in (b"M\x05" + code[2:], native, wide, b"", b"M"):
        write(tmp_path, **{"lib/sensor.mpy": damaged})
        assert refused(tmp_path).code == "app_file"
    write(tmp_path, **{"lib/sensor.mpy": code, "lib/sensor.py": "x = 1\n"})
    assert refused(tmp_path).found == "lib/sensor.mpy"


@pytest.mark.parametrize(
    "main, agent",
    [
        ("from ota import agent\n", True),
        ("import ota.agent\n", True),
        ("from ota.agent import Agent\n", True),
        ("import other\n", True),
        ("def run():\n    from ota.agent import Agent\n", True),
        ("from modules import preload\n\npreload('ota.agent')\n", True),
        ("print('hello')\n", False),
        ("import ota\n", False),
        ("import json, nowhere\n", False),
    ],
)
def test_a_main_that_starts_no_update_agent_is_noticed(tmp_path, main, agent):
    write(
        tmp_path,
        **{
            "main.py": main,
            "ota/__init__.py": "",
            "ota/agent.py": AGENT,
            "other.py": "import ota.agent\n",
        },
    )
    assert app_folder.scan_folder(tmp_path).has_agent is agent


def test_an_agent_that_is_imported_but_missing_is_none(tmp_path):
    write(tmp_path, **{"main.py": "from ota import agent\n"})
    assert not app_folder.scan_folder(tmp_path).has_agent


def test_the_project_s_own_app_has_one(tmp_path):
    shutil.copytree(paths.data_path("firmware", "app"), tmp_path / "app")
    assert app_folder.scan_folder(tmp_path / "app").has_agent


@pytest.mark.parametrize(
    "text, found",
    [
        (b"# B\xfcro\nx = 1\n", "the byte 0xfc in line 1"),
        ("x = 1\n".encode("utf-16"), "UTF-16"),
        (b"x = '\0'\n", "a NUL character in line 1"),
    ],
)
def test_a_source_that_a_beacon_could_not_load_is_refused(text, found):
    with pytest.raises(AppError) as caught:
        appfs.compile_sources({"main.py": b"x = 1\n", "lib/a.py": text})
    assert (caught.value.code, caught.value.found) == ("app_encoding", found)
    assert "lib/a.py" in caught.value.message


def test_a_byte_order_mark_does_not_change_a_module():
    marked = appfs.compile_sources({"main.py": b"\xef\xbb\xbfx = 1\n"})
    assert marked == appfs.compile_sources({"main.py": b"x = 1\n"})
