"""Non-interference: no order of operations brings a tainted text into an identity or a rule; mutants are caught.

The long search and most mutants are marked `lifecycle`: `make lifecycle` runs them.
"""

import os

import pytest

from tests.lifecycle.machine import INVARIANTS, search
from tests.lifecycle.mutants import Mutant, gates_and_taint, removed_checks, weakened

STEPS = int(os.environ.get("LIFECYCLE_STEPS", "20000"))
SHORT = 2000
LONGEST = 20_000  # steps after which a mutant must have been caught
NON_INTERFERENCE = ("non-interference",)


def test_a_short_search_finds_nothing() -> None:
    """The same search each time."""
    steps, broken = search(SHORT, seed=1)
    assert steps >= SHORT and broken is None


@pytest.mark.lifecycle
def test_a_long_search_finds_nothing() -> None:
    """Another search each time; the seed in the message repeats it."""
    seed = int.from_bytes(os.urandom(4))
    steps, broken = search(STEPS, seed=seed)
    assert broken is None, f"search({STEPS}, seed={seed}): {broken}"
    assert steps >= STEPS


BY_NAME = {mutant.name: mutant for mutant in (*removed_checks(), *weakened().values())}


def caught(mutant: Mutant, watched: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """The invariant that broke, and after how many steps."""
    mutant.install(monkeypatch)
    steps, broken = search(LONGEST, watched=watched, seed=1)
    assert broken is not None, f"{mutant.name} lives after {steps} steps"
    return broken.invariant, steps
