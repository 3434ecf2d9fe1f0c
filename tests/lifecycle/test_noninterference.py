"""Non-interference: no order of operations brings a tainted text into an identity or a rule; mutants are caught.

The long search and most mutants are marked `lifecycle`: `make lifecycle` runs them.
"""

import os
from collections.abc import Callable

import pytest

from tests.lifecycle.machine import INVARIANTS, OF_CHECK, OF_NAME, search
from tests.lifecycle.mutants import Mutant, gates_and_taint, removed_checks, weakened

STEPS = int(os.environ.get("LIFECYCLE_STEPS", "20000"))
SHORT = 1500
LONGEST = 60_000  # steps after which a mutant must have been caught
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


def expected(name: str) -> set[str]:
    """What may break first: the invariant that the removed check is for, or Python's own where the check came first."""
    if name in WEAKENED:
        return WEAKENED[name]
    what = name.split(": ")[1].replace(" again", "")
    return {
        OF_CHECK[int(what.removeprefix("check "))] if what.startswith("check") else OF_NAME[what],
        "no-crash",
    }


WEAKENED = {
    "taint: not of parents": {"taint", "rules"},
    "taint: not of the same text": {"taint", "rules"},
    "taint: not its own labels": {"taint", "rules"},
    "taint: not what the kind adds": {"taint", "rules"},
    "endorsement: of any anchor": {"taint", "rules"},
    "endorsement: of every label": {"taint", "rules"},
    "endorsement: signed for the first label": {"authority"},
    "revocation: descendants go on": {"finality"},
    "verify: own labels, endorsed or not": {"liveness", "names"},
    "valid_signers: key ids without signatures": {"authority"},
    "signers: of any role": {"authority", "names"},
    "signers: one is enough": {"authority", "names"},
    "verify: signers of any kind": {"authority"},
    "override: no kind": {"door"},
    "override: never holds": {"door"},
    "override: holds for ever": {"liveness"},
}
ALONE = (
    "both gates against taint",
    "taint: not of parents",
    "taint: not of the same text",
    "taint: not its own labels",
    "taint: not what the kind adds",
    "endorsement: of any anchor",
)
QUICK = ("_register: already-registered", "_check_rule: signatures", "_check_registered: check 11")


@pytest.mark.lifecycle
@pytest.mark.parametrize("name", BY_NAME)
def test_a_mutant_breaks_the_invariant_that_its_check_is_for(
    name: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    invariant, steps = caught(BY_NAME[name], INVARIANTS, monkeypatch)
    record_property("caught", f"{invariant} after {steps} steps")
    assert invariant in expected(name), f"after {steps} steps"


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_is_caught_soon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of them also where the rest of the suite runs."""
    assert caught(BY_NAME[name], INVARIANTS, monkeypatch)[0] in expected(name)


@pytest.mark.lifecycle
@pytest.mark.parametrize("name", ALONE)
def test_a_mutant_breaks_non_interference_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """Nothing else is watched: a tainted text really is verified as an identity or a rule."""
    mutant = gates_and_taint() if name not in BY_NAME else BY_NAME[name]
    invariant, steps = caught(mutant, NON_INTERFERENCE, monkeypatch)
    record_property("caught", f"{invariant} after {steps} steps")
    assert invariant == "non-interference"
