"""The bench itself: a generator that counts right, and a run of its own part, in seconds."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import orchestrator_subject
from tests.bench.load import hammer, length
from tests.bench.table import BEGIN, END, Row, markdown, publish

DEADLINE_S = 120.0  # of a load that a busy machine answers in seconds


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n", 12),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nServer: x\r\n", 7),
        (b"HTTP/1.1 204 No Content\r\n", 0),
    ],
)
def test_the_length_of_an_answer(head, size):
    assert length(head) == size


def test_the_generator_counts_what_a_server_has_answered():
    served = 0

    async def answer(reader, writer) -> None:
        nonlocal served
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                served += 1
                body = b"x" * (served % 5 * 70_000)
                status = b"200 OK" if served % 3 else b"503 Busy"
                head = b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
                writer.write(head + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> dict:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            return await hammer(url, [b"GET / HTTP/1.1\r\n\r\n"] * 60, 4, 60)

    found = asyncio.run(main())
    assert served == found["requests"] == 60
    assert found["statuses"] == {200: 40, 503: 20}
    assert found["lost"] == 0 and found["p99_ms"] >= found["p50_ms"]


def test_a_ratio_above_one_is_better_whatever_is_counted():
    values = {"goosebit": 50.0, "openmv-ota": 100.0, "ours": 200.0}
    assert Row("rate", "req/s", True, None, values).ratio == 2.0
    assert Row("time", "ms", False, None, values).ratio == 0.25
    assert Row("alone", "ms", False, 3, {"ours": 1.0}).ratio is None
    assert "| rate, req/s | 50 | 100 | – | – | 200 | ≥ 9 | 2 × |" in markdown(
        [Row("rate", "req/s", True, 9, values)]
    )


def test_what_is_measured_is_answered_and_counted(tmp_path):
    """As many polls and updates as are asked for, whatever the machine manages in a second."""

    async def body(server) -> None:
        subject = orchestrator_subject.OrchestratorSubject(server, server.said["token"])
        await subject.register(40)
        subject.roll_out("1.1.0")
        assert len(await subject.offers(40)) == 40
        polls = [subject.poll(beacon) for beacon in subject.fleet for _ in range(5)]
        found = await hammer(server.url, polls, 16, DEADLINE_S)
        assert found["statuses"] == {200: 200} and found["lost"] == 0
        assert (await subject.cycles("1.2.0", 40, 16))["counted"] == 40
        assert (await subject.cycles("1.3.0", 40, 16, twice=True))["counted"] == 40

    with orchestrator_subject.start_orchestrator(tmp_path) as server:
        asyncio.run(body(server))


@pytest.mark.slow
def test_a_quick_run_measures_ours_and_the_floor(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--no-peers", "--only=floors,ours"]
        + [f"--reports={tmp_path}", "--seconds=0.2", "--beacons=40"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    rows = {row["measure"]: row for row in found["rows"]}
    assert rows["poll, update due, 16 connections"]["values"]["ours"] > 0
    assert rows["counted of the updates made"]["values"]["ours"] == 100
    assert found["raw"]["ours poll 16"]["statuses"].keys() == {"200"}
    assert (tmp_path / "bench.md").read_text().startswith("| measure")


def test_the_table_finds_its_place_in_the_docs(tmp_path):
    page = tmp_path / "measures.md"
    page.write_text(f"# Measures\n\n{BEGIN}\nold\n{END}\n\nmore\n")
    where = {"at": "2026-01-02T00:00:00Z", "cores": 2, "python": "3", "load": 0, "load_after": 1}
    rows = [Row("rate", "req/s", True, 9, {"ours": 200.0}, "of a kind")]
    publish(tmp_path, rows, where, tmp_path / "none.png")
    text = page.read_text()
    assert "old" not in text and text.startswith("# Measures") and text.endswith("more\n")
    assert "| rate, req/s | – | – | – | – | 200 | ≥ 9 |  |" in text
    assert "* rate: of a kind" in text
    publish(tmp_path, rows, where, tmp_path / "none.png")
    assert page.read_text() == text
