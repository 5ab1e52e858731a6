"""App filesystems: compiled, reproducible, and each refusal by its name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota import paths
from beacon_ota.images import app_folder, appfs, littlefs_writer
from beacon_ota.images.appfs import AppError, AppInfo

SOURCES = {
    "main.py": b"import pkg.util\n\n\ndef run():\n    assert 0, 'dropped'\n    pkg.util.fail()\n",
    "pkg/__init__.py": b"",
    "pkg/util.py": b"\n\n\ndef fail():\n    raise ValueError('here')\n",
}
INFO = AppInfo("1.2.3", "esp32c3", "ab" * 32, 1_700_000_000)


def refuse(function, *args, code, **kwargs):
    with pytest.raises(AppError) as caught:
        function(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


def test_an_app_is_compiled_and_described():
    app = appfs.build_app(SOURCES, INFO, keys=b'{"keys":{}}', extra={"ca.der": b"\x30"})
    found, info = appfs.read_app(app.image)
    assert sorted(found.files) == [
        "app.json",
        "ca.der",
        "keys.json",
        "main.mpy",
        "pkg/__init__.mpy",
        "pkg/util.mpy",
    ]
    assert info == INFO
    assert found.files["keys.json"] == b'{"keys":{}}'
    assert found.block_size == 256 and found.version == (2, 0)
    assert len(app.image) % 4096 == 0
    assert app.payload == sum(len(d) for n, d in found.files.items() if n.endswith(".mpy"))


def test_the_same_sources_give_the_same_bytes():
    first = appfs.build_app(SOURCES, INFO)
    again = appfs.build_app(dict(reversed(SOURCES.items())), INFO)
    assert first.image == again.image


def test_insecure_is_written_only_when_it_is_so():
    assert b"insecure" not in INFO.pack()
    loud = AppInfo("1.2.3", "esp32c3", "ab" * 32, insecure=True)
    assert b'"insecure":true' in loud.pack()
    assert AppInfo.parse(loud.pack()) == loud


RUN = """
import sys, vfs
f = open(%r, "rb")
class Device:
    def readblocks(self, n, buf, off=0):
        f.seek(n * 256 + off)
        f.readinto(buf)
    def writeblocks(self, n, buf, off=0):
        raise OSError(30)
    def ioctl(self, op, arg):
        return {4: %d, 5: 256}.get(op, 0)
vfs.mount(Device(), "/app", readonly=True)
sys.path[:] = ["/app"]
import main
try:
    main.run()
except ValueError as error:
    sys.print_exception(error)
"""


def test_the_interpreter_runs_it_with_line_numbers_and_without_asserts(tmp_path):
    image = tmp_path / "app.img"
    image.write_bytes(appfs.build_app(SOURCES, INFO).image)
    done = subprocess.run(
        [
            Path(sys.executable).with_name("micropython"),
            "-X",
            "heapsize=160K",
            "-c",
            RUN % (str(image), image.stat().st_size // 256),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = done.stdout + done.stderr
    assert 'File "main", line 6, in run' in said
    assert 'File "pkg.util", line 5, in fail' in said
    assert "ValueError: here" in said


def test_sources_are_the_python_files_of_a_folder(tmp_path):
    for name in ("main.py", "a/b.py", "a/__pycache__/b.py", ".hidden.py", "notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    assert list(app_folder.read_sources(tmp_path)) == ["a/b.py", "main.py"]


def test_a_folder_without_main_is_no_app(tmp_path):
    refuse(app_folder.read_sources, tmp_path, code="app_main")
    refuse(app_folder.read_sources, tmp_path / "nowhere", code="app_main")


@pytest.mark.parametrize(
    ("source", "without"),
    [
        ("from micropython import const\n\n_A = const(5)\nB = const(6)\n", "\n\n_A = 5\nB = 6\n"),
        ("from . import const, other\n\nB = const(b'x')\n", "from . import other\n\nB = b'x'\n"),
    ],
)
def test_an_import_of_const_costs_nothing(source, without):
    """Names and line numbers stay; a private constant is no name at all."""
    plain = without.replace("_A = 5", "")
    compiled = [appfs.compile_sources({"m.py": text.encode()}) for text in (source, plain)]
    assert compiled[0] == compiled[1]


@pytest.mark.parametrize(
    "source",
    [
        "from micropython import const\n\ndef f(x):\n    return const(x)\n",
        "from micropython import const\n\nf = const\n",
        "from micropython import const as c\n\nA = 5\n",
        "from elsewhere import const\n\nA = const(5)\n",
        "from micropython import (\n    const,\n)\n\nA = const(5)\n",
    ],
)
def test_an_import_of_const_that_may_be_needed_stays(source):
    head, _, rest = source.partition("\n\n")
    bare = "\n" * head.count("\n") + "\n\n" + rest
    texts = [text.encode() for text in (source, bare)]
    compiled = [appfs.compile_sources({"m.py": text})["m.mpy"] for text in texts]
    assert len(compiled[0]) > len(compiled[1]), "the import is gone"


def test_what_does_not_compile_names_file_and_line():
    error = refuse(appfs.compile_sources, {"a/b.py": b"x = (\ny = 2\n"}, code="app_syntax")
    assert "a/b.py" in error.message
    assert "line" in str(error.found) and "SyntaxError" in str(error.found)


@pytest.mark.parametrize("name", ["main.mpy", "app.json"])
def test_two_files_of_one_name(name):
    refuse(appfs.build_app, SOURCES, INFO, extra={name: b""}, code="app_file")


@pytest.mark.parametrize(
    "version, device_type, code",
    [
        ("1.2", "esp32c3", "app_version"),
        ("v1.2.3", "esp32c3", "app_version"),
        ("", "esp32c3", "app_version"),
        ("1.2.3", "ESP32", "app_device_type"),
        ("1.2.3", "", "app_device_type"),
        ("1.2.3", "-x", "app_device_type"),
        ("1.2.3", "a" * 33, "app_device_type"),
    ],
)
def test_names_that_cannot_be(version, device_type, code):
    refuse(appfs.build_app, SOURCES, AppInfo(version, device_type, "ab" * 32), code=code)


@pytest.mark.parametrize(
    "text, code",
    [
        (b"", "app_json"),
        (b"[]", "app_json"),
        (b"{}", "app_json"),
        (b"\xff", "app_json"),
        (b"[" * 400, "app_json"),
        (INFO.pack().ljust(600), "app_json"),
        (INFO.pack().replace(b'"1.2.3"', b"1"), "app_version"),
        (INFO.pack().replace(b'"1.2.3"', b'"1.2"'), "app_version"),
        (INFO.pack().replace(b'"esp32c3"', b'"A"'), "app_device_type"),
        (INFO.pack().replace(b'"esp32c3"', b"null"), "app_device_type"),
        (INFO.pack().replace(b"abab", b"ab"), "app_json"),
        (INFO.pack().replace(b"1700000000", b"-1"), "app_json"),
        (INFO.pack().replace(b"1700000000", b"1.5"), "app_json"),
        (INFO.pack().replace(b"1700000000", b"true"), "app_json"),
        (INFO.pack()[:-1] + b',"insecure":1}', "app_json"),
        (INFO.pack()[:-1] + b',"more":1}', "app_json"),
    ],
)
def test_app_json_that_is_refused(text, code):
    refuse(AppInfo.parse, text, code=code)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_arbitrary_app_json_is_refused_by_name(text):
    with pytest.raises(AppError):
        AppInfo.parse(text)


def test_filesystems_that_are_no_apps():
    main = {"main.mpy": b""}
    refuse(appfs.read_app, littlefs_writer.build_filesystem(main, 512), code="app_json")
    refuse(
        appfs.read_app,
        littlefs_writer.build_filesystem({"app.json": INFO.pack()}, 512),
        code="app_main",
    )
    refuse(appfs.read_app, bytes(4096), code="app_mount")


def test_the_time_of_a_build_can_be_fixed(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567890")
    assert appfs.build_time(tmp_path) == 1234567890
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert appfs.build_time(tmp_path) == 0  # no git, no time
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x"]
    env = {**os.environ, "GIT_COMMITTER_DATE": "1600000000 +0000"}
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True, env=env)
    assert appfs.build_time(tmp_path) == 1600000000


def test_the_projects_own_app_fits():
    texts = app_folder.read_sources(paths.data_path("firmware", "app"))
    app = appfs.build_app(texts, INFO)
    assert app.payload <= appfs.BUDGET
    assert len(app.image) <= 175_824
