"""What a newcomer's mistakes are answered with: each answer says what to do."""

import http.server
import json
import threading

import pytest

from beacon_ota import cli
from beacon_ota.console import output
from tests.orchestrator.conftest import local  # noqa: F401
from tests.orchestrator.world import upload


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    for name in ("BEACON_OTA_URL", "BEACON_OTA_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BEACON_OTA_CONFIG", str(tmp_path / "configuration"))
    monkeypatch.setattr(output.console, "_width", 200)
    monkeypatch.setattr(output.error_console, "_width", 200)

    def call(*args):
        code = 0
        try:
            cli.main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def call(run, local, monkeypatch):  # noqa: F811
    """Run a command against an orchestrator, as its administrator."""
    admin = local.admin()
    monkeypatch.setenv("BEACON_OTA_URL", local.url)
    monkeypatch.setenv("BEACON_OTA_TOKEN", admin.token)
    return run


def test_without_a_token(run, local):  # noqa: F811
    code, _, err = run("beacon", "list", "--url", local.url)
    assert code == 4 and "--token" in err and "BEACON_OTA_TOKEN" in err


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ota.example.org", "http://ota.example.org"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("localhost:8080", "http://localhost:8080"),
        ("ftp://ota.example.org", "https://"),
        ("http://", "http"),
    ],
)
def test_an_address_that_is_none(run, url, expected):
    code, _, err = run("beacon", "list", "--url", url, "--token", "x")
    assert code == 2 and "url_syntax" in err and expected in err


def test_https_to_a_server_without_tls(run, local):  # noqa: F811
    url = local.url.replace("http://", "https://")
    code, _, err = run("beacon", "list", "--url", url, "--token", "x")
    assert code == 3 and "no TLS" in err and "http://" in err


def test_http_to_a_server_with_tls(run, tmp_path):
    from tests.orchestrator.server.test_tls import certificate
    from tests.orchestrator.world import Server

    files = certificate(tmp_path, "own")
    with Server(tmp_path / "data", f"--tls-cert={files[0]}", f"--tls-key={files[1]}") as server:
        url = server.url.replace("https://", "http://")
        code, _, err = run("beacon", "list", "--url", url, "--token", "x")
    assert code == 3 and "https:// in place of http://" in err


def test_columns_that_say_nothing_are_left_out(call, local):  # noqa: F811
    local.admin().create_beacon("b1", "esp32c3")
    assert "quarantined" not in call("beacon", "list")[1]
    local.admin().post_beacon_action("b1", "quarantine", "looks odd")
    out = call("beacon", "list")[1]
    assert "quarantined" in out and "tags" not in out


def test_a_release_that_is_not_there(call):
    for args in (
        ("rollout", "create", "9.9.9"),
        ("rollout", "plan", "9.9.9"),
        ("release", "show", "9.9.9"),
        ("release", "promote", "9.9.9"),
    ):
        code, _, err = call(*args)
        assert code == 1 and "No release 9.9.9. `release list` shows them." in err
    code, _, err = call("rollout", "show", "abc")
    assert code == 2 and "`rollout list` shows them" in err
    code, _, err = call("release", "republish", "9.9.9", "--as", "9.9.10")
    assert code == 1 and "never uploaded" in err and "republish FILE" in err


def test_a_rollout_that_reaches_nobody_warns(call, local, tmp_path):  # noqa: F811
    (beacon,) = local.beacons(1)
    beacon.poll()
    upload(local.admin(), "1.1.0", tmp_path)
    code, out, err = call("rollout", "create", "1.1.0", "--preset", "all-at-once")
    assert code == 0 and "is testing" in err and "release promote" in err
    assert "already" not in err and "1 is on the channel stable" in out
    code, _, err = call("rollout", "create", "1.1.0", "--preset", "all-at-once")
    assert code == 0 and "already" in err and "rollout show" in err


def test_what_waits_says_so(call, local, tmp_path):  # noqa: F811
    for beacon in local.beacons(2):
        beacon.poll()
    upload(local.admin(), "1.1.0", tmp_path, channel="stable")
    hour = int(local.clock.now() // 3600 + 9) % 24
    window = f"{hour:02}:00-{(hour + 1) % 24:02}:00"
    args = ("rollout", "create", "1.1.0", "--preset", "all-at-once", "--window", window)
    code, out, err = call(*args)
    assert code == 0 and "testing" not in err
    assert f"2 wait for their window, opens {hour:02}:00 UTC in " in out
    [rollout] = json.loads(call("rollout", "list", "--json")[1])
    code, out, _ = call("rollout", "show", rollout["rollout_id"])
    assert code == 0 and f"2 wait for their window, opens {hour:02}:00 UTC in " in out


def test_times_name_their_zone(call, monkeypatch):
    assert call("site", "add", "hq")[1].endswith("--tz names its own time zone: Europe/Berlin\n")
    assert "--tz" not in call("site", "add", "syd", "--tz", "Australia/Sydney")[1]
    monkeypatch.setenv("TZ", "UTC")
    assert " UTC " in call("site", "list")[1]


def test_an_id_is_never_cut(call, local, monkeypatch):  # noqa: F811
    beacon_id = "a-beacon-whose-name-has-a-good-many-letters-in-it-0123456789abcd"
    local.admin().create_beacon(beacon_id, "esp32c3")
    for width in (40, 60, 90, 200):
        monkeypatch.setattr(output.console, "_width", width)
        code, out, _ = call("beacon", "list")
        assert code == 0 and "…" not in out
        folded = "".join(line.split("│")[1].strip() for line in out.splitlines() if "│" in line)
        assert beacon_id in folded
        columns = out.splitlines()[0].count("┳") + 1
        assert len(beacon_id) > width - 4 * columns or beacon_id in out
    assert beacon_id in out


def test_this_computer_is_no_address_for_beacons(call, local):  # noqa: F811
    args = ("provision", "wifi", "--ssid", "site", "--open", "--pin", "12345678", "--beacon", "A1")
    _, _, err = call(*args, "--radio", "room:none")
    assert "--orch-url" in err and err.index("--orch-url") < err.index("bluetooth_off")
    _, _, err = call(*args, "--radio", "room:none", "--orch-url", "http://10.0.0.5")
    assert "--orch-url" not in err


def test_missing_files_of_tls_are_named(run, tmp_path):
    (tmp_path / "real.pem").write_text("nothing")
    for cert, key in (("none.pem", "real.pem"), ("none.pem", "none.key")):
        code, _, err = run(
            "serve", "--insecure", "--data", "d", "--tls-cert", cert, "--tls-key", key
        )
        assert code in (1, 2) and "none.pem" in err and "No such file" in err


def test_a_pipe_gets_whole_lines(tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    file = tmp_path / "out"
    with file.open("w") as stream:
        console = output.SafeConsole(file=stream, force_terminal=False)
        row = {"beacon_id": "b" * 64, "detail": "word " * 60}
        console.print(output.build_table([row], ("beacon_id", "detail")))
    assert "b" * 64 in file.read_text() and ("word " * 60).strip() in file.read_text()
    monkeypatch.setenv("COLUMNS", "50")
    assert output.SafeConsole(file=file.open()).size.width == 50


def test_a_server_that_is_no_orchestrator(run):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        code, _, err = run("site", "list", "--url", url, "--token", "x")
        server.shutdown()
        thread.join()
    assert code == 3 and "not_an_orchestrator" in err


def test_a_certificate_of_a_private_authority(run, tmp_path):
    from tests.orchestrator.server.test_tls import certificate
    from tests.orchestrator.world import Server

    files = certificate(tmp_path, "own")
    with Server(tmp_path / "data", f"--tls-cert={files[0]}", f"--tls-key={files[1]}") as server:
        code, _, err = run("beacon", "list", "--url", server.url, "--token", "x")
    assert code == 3 and "BEACON_OTA_CA" in err


@pytest.mark.parametrize("what", ["beacon", "site", "release", "rollout", "token"])
def test_a_list_of_nothing(call, what):
    code, out, _ = call(what, "list")
    assert code == 0
    if what != "token":  # there is the administrator's
        assert out.strip() == "none"


@pytest.mark.parametrize(("what", "name"), [("beacon", "beacon-1122"), ("site", "nowhere")])
def test_a_name_of_nothing(call, what, name):
    verb = "show" if what == "beacon" else "remove"
    code, _, err = call(what, verb, name, *(["--yes"] if verb == "remove" else []))
    assert code == 1 and f"`beacon-ota {what} list`" in err


def test_events_leave_out_what_is_not_given(call):
    call("site", "add", "hq")
    code, out, _ = call("events", "--latest", 1)
    assert code == 0 and "path=hq" in out and "None" not in out
