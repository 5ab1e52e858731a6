"""Log lines: nothing from outside forges one, and no secret is in one."""

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from beacon_ota.orchestrator.server.log_format import LogFormatter, escape_unprintable
from tests.orchestrator.raw import Raw
from tests.orchestrator.world import Server, until


def logged(work) -> str:
    """Return what a logger with our format writes."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LogFormatter())
    log = logging.Logger("test")
    log.addHandler(handler)
    work(log)
    return out.getvalue()


@given(st.text(max_size=300))
def test_a_record_is_one_printable_line(said):
    line = logged(lambda log: log.warning("refused %s from %s", said, said))
    assert line.endswith("\n") and line.count("\n") == 1
    assert line[:-1].isprintable()
    assert line.encode()  # lone surrogates, too


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=50))
def test_what_is_printable_stays(said):
    assert escape_unprintable(said) == said


def test_an_exception_forges_no_record():
    def work(log) -> None:
        try:
            try:
                raise ValueError("one\n2026-01-01 00:00:00,000 ERROR forged\x1b[2J")
            except ValueError as error:
                raise RuntimeError("two\r\n2026-01-01 ERROR forged") from error
        except RuntimeError:
            log.exception("failed for %s", "x\ny")

    lines = logged(work).splitlines()
    assert "failed for x\\ny" in lines[0]
    assert all(line.startswith("  | ") for line in lines[1:])
    assert "\x1b" not in "".join(lines) and any("forged" in line for line in lines)
    assert any("ValueError" in line for line in lines)  # and what led to it is told


@pytest.mark.parametrize("grouped", [False, True])
def test_what_a_database_says_is_not_written(grouped):
    secret = "whsec_c2VjcmV0"
    source = 'conn.execute(text("INSERT INTO nowhere VALUES (:x)"), {"x": secret})'
    engine = create_engine("sqlite://")

    def work(log) -> None:
        with engine.connect() as conn:
            try:
                conn.execute(text("INSERT INTO nowhere VALUES (:x)"), {"x": secret})
            except SQLAlchemyError as error:
                try:
                    if grouped:
                        raise ExceptionGroup("several", [error])
                    raise KeyError("in a handler")
                except Exception:
                    log.exception("failed")

    said = logged(work)
    assert secret not in said and "nowhere VALUES" not in said.replace(source, "")
    assert "OperationalError" in said and "no such table" not in said


def test_requests_forge_no_records(tmp_path):
    """Of a real server, with everything logged: paths, ids, headers."""
    forged = "2026-01-01 00:00:00,000 ERROR forged"
    with Server(tmp_path / "data", "-v") as server:
        for path in (
            "/firmwares/latest/a%0a" + forged.replace(" ", "%20"),
            "/firmwares/latest/a%0d%0a" + forged.replace(" ", "%20"),
            "/firmwares/latest/%1b[2J%1b[31m",
            "/firmwares/latest/%e2%80%ae%e2%80%a8" + forged.replace(" ", "%20"),
            "/firmwares/latest/%c2%9b31m",
        ):
            with Raw(server) as raw:
                raw.send(
                    f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                    "Authorization: Beacon id=a, ts=1, nonce=0, mac=0\r\n\r\n".encode()
                )
                assert raw.read_to_end() in ([401], [400])
        until(lambda: server.log().count("refused") >= 4)
        log = server.log()
    assert not any(line.startswith(forged) for line in log.splitlines())
    assert all(one.isprintable() or one == "\n" for one in log)
