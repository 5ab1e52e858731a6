"""What is stopped and not stored: shared by workers, whole after a power cut, heeded by a start."""

import errno
import os
import struct

import pytest

from beacon_ota.orchestrator.core import stop_board
from beacon_ota.orchestrator.core.stop_board import ALL_ROLLOUTS, STOPS_FILE, StopBoard
from beacon_ota.orchestrator.rollout.types import Kind, RolloutState, Status, Transition

HALT = Transition(5.0, Kind.HALTED, 0, 1, "by_hand", "smoke", "first")
PAUSE = Transition(4.0, Kind.PAUSED, reason="by_hand", by="second")
ACTIVE = RolloutState(1.0, (), Status.ACTIVE)


def noted(board: StopBoard) -> bool:
    return board.write_note(board.encode())


def test_it_holds_at_once_and_until_it_is_dropped(tmp_path):
    board = StopBoard(tmp_path)
    empty = board.current()
    assert empty == {} and board.current() is empty
    board.put("a", (PAUSE,))
    board.put("a", (HALT,))
    assert board.current() == {"a": (PAUSE, HALT)}
    assert board.apply_to("a", ACTIVE).status is Status.HALTED
    assert board.apply_to("b", ACTIVE) is ACTIVE
    board.drop("a", (PAUSE,))
    assert board.stops_of("a") == (HALT,)
    board.drop("a", (HALT,))
    assert board.current() == {} and board.survives_restart


def test_a_start_reads_what_was_noted(tmp_path):
    board = StopBoard(tmp_path)
    board.put("a", (HALT,))
    assert not board.survives_restart and StopBoard(tmp_path).current() == {}
    assert noted(board) and board.survives_restart
    again = StopBoard(tmp_path)
    assert again.current() == {"a": (HALT,)} and again.survives_restart
    again.drop("a", (HALT,))
    assert not again.survives_restart  # the file has it still
    assert noted(again) and again.survives_restart
    assert StopBoard(tmp_path).current() == {}


def test_what_is_dropped_and_put_again_is_noted_again(tmp_path):
    board = StopBoard(tmp_path)
    for _ in range(3):
        board.put("a", (HALT,))
        assert noted(board)
        board.drop("a", (HALT,))
    assert noted(board)
    assert StopBoard(tmp_path).current() == {}


def test_workers_share_it_and_take_each_others_places(tmp_path):
    board = StopBoard(tmp_path, 3)
    for place in (0, 1, 2):
        if (pid := os.fork()) == 0:
            board.adopt_place(place)
            board.put(f"r{place}", (HALT,))
            os._exit(0 if noted(board) else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert set(board.current()) == {"r0", "r1", "r2"}
    board.adopt_place(1)  # its worker was killed
    assert board.to_store() == {"r1": (HALT,)}
    board.drop("r1", (HALT,))
    assert set(board.current()) == {"r0", "r2"}
    # The next start has fewer workers, and forgets nothing of those that there were.
    assert set(StopBoard(tmp_path, 2).current()) == {"r0", "r1", "r2"}
    one = StopBoard(tmp_path)
    assert set(one.current()) == {"r0", "r1", "r2"}
    for key in list(one.to_store()):
        one.drop(key, (HALT,))
    assert noted(one)
    assert StopBoard(tmp_path, 3).current() == {}


@pytest.mark.parametrize("cut", [0, 1, 20, 200])
def test_a_note_that_was_torn_leaves_the_one_before(tmp_path, cut):
    board = StopBoard(tmp_path)
    board.put("a", (HALT,))
    assert noted(board)
    before = (tmp_path / STOPS_FILE).read_bytes()
    board.put("b", (HALT,))
    assert noted(board)
    after = (tmp_path / STOPS_FILE).read_bytes()
    changed = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    torn = bytearray(before)
    end = changed[0] + cut
    torn[changed[0] : end] = after[changed[0] : end]
    (tmp_path / STOPS_FILE).write_bytes(torn)
    found = StopBoard(tmp_path).current()
    assert found.get("a") == (HALT,) and ALL_ROLLOUTS not in found


def test_a_note_that_cannot_be_read_halts_everything(tmp_path):
    StopBoard(tmp_path)
    size = (tmp_path / STOPS_FILE).stat().st_size
    (tmp_path / STOPS_FILE).write_bytes(b"\xff" * size)
    board = StopBoard(tmp_path)
    assert board.apply_to("whatever", ACTIVE).status is Status.HALTED


@pytest.mark.parametrize(
    "text",
    [
        b"{}x",
        b"[1]",
        b'[["a", 1]]',
        b'[["a", [[1, "resumed", null, null, "", "", ""]]]]',
        b'[["a", [["x", "halted", null, null, "", "", ""]]]]',
        b'[["a", [[1, "halted", "x", null, "", "", ""]]]]',
        b'[["a", [[1, "halted"]]]]',
        b"[" * 5000,
        b"\xff",
    ],
)
def test_a_note_that_makes_no_sense_halts_everything(tmp_path, text):
    StopBoard(tmp_path)
    whole = bytearray((tmp_path / STOPS_FILE).read_bytes())
    half = stop_board._half(3, text)
    whole[: len(half)] = half
    (tmp_path / STOPS_FILE).write_bytes(whole)
    assert StopBoard(tmp_path).apply_to("whatever", ACTIVE).status is Status.HALTED


@pytest.mark.parametrize("size", [0, 1, 7, 5000])
def test_a_file_of_another_size_is_made_whole(tmp_path, size):
    (tmp_path / STOPS_FILE).write_bytes(b"\0" * size)
    board = StopBoard(tmp_path)
    assert board.current() == {}
    board.put("a", (HALT,))
    assert noted(board)
    assert StopBoard(tmp_path).current() == {"a": (HALT,)}


def test_a_file_that_was_cut_off_halts_everything(tmp_path):
    board = StopBoard(tmp_path)
    board.put("a", (HALT,))
    assert noted(board)
    half = (tmp_path / STOPS_FILE).stat().st_size // 2
    os.truncate(tmp_path / STOPS_FILE, half + 30)
    assert StopBoard(tmp_path).apply_to("whatever", ACTIVE).status is Status.HALTED


def test_more_than_there_is_room_for_halts_everything(tmp_path):
    board = StopBoard(tmp_path)
    board.put_all([f"{number:024x}" for number in range(1500)], (HALT,))
    assert len(board.current()) == 1500  # without their words, if need be
    assert all(those[0].kind is Kind.HALTED for those in board.current().values())
    board.put_all([f"{number:024x}" for number in range(12_000)], (HALT,))
    assert board.apply_to("whatever", ACTIVE).status is Status.HALTED
    assert noted(board)


def test_a_disk_that_takes_nothing_is_said(tmp_path, monkeypatch, caplog):
    board = StopBoard(tmp_path)

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "pwrite", full)
    board.put("a", (HALT,))
    assert not noted(board) and not board.survives_restart
    assert board.stops_of("a") == (HALT,) and "cannot be noted" in caplog.text


def test_numbers_grow_by_one(tmp_path):
    board = StopBoard(tmp_path)
    board.put("a", (HALT,))
    assert struct.unpack_from("@Q", board._map)[0] == 1


def test_a_start_goes_on_where_the_one_before_ended(tmp_path):
    for turn in range(5):
        board = StopBoard(tmp_path, 1 + turn % 3)
        assert board.current() == {}, turn
        for _ in range(turn % 2 + 1):
            board.put("a", (HALT,))
            assert noted(board)
            assert StopBoard(tmp_path).current() == {"a": (HALT,)}
            board.drop("a", (HALT,))
            assert noted(board)


def test_a_place_of_an_earlier_start_does_not_hide_a_later_note(tmp_path):
    for turn in range(4):
        board = StopBoard(tmp_path, 2)
        board.adopt_place(1)
        board.put(f"r{turn}", (HALT,))
        assert noted(board)
        again = StopBoard(tmp_path, 2)
        assert again.current() == {f"r{turn}": (HALT,)}
        again.drop(f"r{turn}", (HALT,))
        assert noted(again)


def test_a_stop_that_is_known_hides_no_note_that_cannot_be_read(tmp_path):
    """Another worker's note is lost, which may have halted what this one had only paused."""
    board = StopBoard(tmp_path, 2)
    board.adopt_place(1)
    board.put("a", (PAUSE,))
    board.put(ALL_ROLLOUTS, (HALT,))
    assert board.apply_to("a", ACTIVE).status is Status.HALTED
    assert board.apply_to("b", ACTIVE).status is Status.HALTED
