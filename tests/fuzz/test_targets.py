"""The fuzzing targets on their seeds and on the seeds mangled by hand: only declared errors come out."""

import random

import pytest

from tests.fuzz.targets import TARGETS, Target, judge


def mangled(seed: bytes, chance: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(chance.randrange(1, 4)):
        position = chance.randrange(len(data) + 1)
        what = chance.randrange(5)
        if what == 0 and position < len(data):
            data[position] ^= 1 << chance.randrange(8)
        elif what == 1:
            del data[position : position + chance.randrange(1, 9)]
        elif what == 2:
            data[position:position] = chance.choice(
                [b"\0", b"\xff", b"0", b'"', b"\n", b"{", b"[", b"-", b"\xed\xa0\x80"]
            )
        elif what == 3:
            data[position:position] = data[position : position + 20]
        else:
            del data[position:]
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_only_declared_errors_come_out(target: Target) -> None:
    if target.name == "fieldprint_file":
        pytest.importorskip("torch")
    seeds, chance = list(target.seeds()), random.Random(2)
    assert seeds
    for seed in (b"", b"\0", *seeds):
        judge(target, seed)
    for _ in range(150):
        judge(target, mangled(chance.choice(seeds), chance))
