"""Frames for the fuzzers: proper ones are understood, mutations depend on the seed alone."""

import random

from beacon_ota.campaign.fuzz import blufi_frames
from beacon_ota.wire import blufi


def test_proper_conversations_are_understood_in_the_clear():
    """The first conversations are those without a checksum, without keys."""
    understood = 0
    for case in blufi_frames.proper_conversations():
        link = blufi.Link(device=True)
        for frame in case:
            try:
                understood += link.receive(frame) is not None
            except blufi.BlufiError:
                break  # sealed, or meant for the other side
    assert understood > 100


def test_mutations_depend_on_the_seed_alone():
    corpus = list(blufi_frames.proper_conversations())

    def mutations(seed: int) -> list[tuple[bytes, ...]]:
        rng = random.Random(seed)
        return [blufi_frames.mutate_case(rng, rng.choice(corpus), corpus) for _ in range(50)]

    assert mutations(1) == mutations(1) != mutations(2)
    assert all(len(frame) <= 1024 for case in mutations(1) for frame in case)


def test_a_case_is_written_as_hex():
    assert blufi_frames.format_case((b"\x01\x02", b"", b"\xff")) == "0102 - ff"
