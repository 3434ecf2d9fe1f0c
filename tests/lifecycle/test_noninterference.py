"""Non-interference: no order of operations brings a tainted text into an identity or a rule; mutants are caught.

The long search and most mutants are marked `lifecycle`: `make lifecycle` runs them.
"""

import os
import re
from pathlib import Path

import pytest

from tests.lifecycle.machine import INVARIANTS, search
from tests.lifecycle.mutants import Mutant, gates_and_taint, removed_checks, weakened

ROOT = Path(__file__).parents[2]
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


def recorded(heading: str) -> dict[str, str]:
    """Mutant to invariant, from a table of the threat model."""
    text = (ROOT / "docs/threat-model.md").read_text().split(heading)[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(.+?)` \| ([\w-]+) \| ([\d,]+) \|$", text, re.MULTILINE)
    return {name: invariant for name, invariant, _ in rows}


ALL = recorded("| mutant | invariant | steps |")
ALONE = recorded("| mutant, non-interference alone | invariant | steps |")
QUICK = ("_register: already-registered", "_check_rule: signatures", "_check_not_replaced: check 8")


@pytest.mark.lifecycle
@pytest.mark.parametrize("name", BY_NAME)
def test_a_mutant_breaks_the_invariant_that_is_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    invariant, steps = caught(BY_NAME[name], INVARIANTS, monkeypatch)
    assert invariant == ALL[name], f"after {steps} steps"


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_is_caught_soon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of them also here, where the rest of the suite runs."""
    assert caught(BY_NAME[name], INVARIANTS, monkeypatch)[0] == ALL[name]


@pytest.mark.lifecycle
@pytest.mark.parametrize("name", ALONE)
def test_a_mutant_breaks_non_interference_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is watched: a tainted text really is verified as an identity or a rule."""
    mutant = gates_and_taint() if name not in BY_NAME else BY_NAME[name]
    assert caught(mutant, NON_INTERFERENCE, monkeypatch)[0] == "non-interference"


def test_the_tables_name_every_mutant() -> None:
    assert set(ALL) == set(BY_NAME)
    assert len(ALONE) >= 5
