"""Spin proves the model of the verification protocol, refutes each mutant, and the page says what both carry.

The searches run under the marker `protocol`, where spin is installed; `make protocol` runs them everywhere, in CI too.
"""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from protocol import check
from protocol.check import MODEL, MUTANTS, PROOFS, SAFETY, WORLDS, Search, SpinError, run

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/protocol.md"
spin = [
    pytest.mark.protocol,
    pytest.mark.skipif(
        shutil.which("spin") is None or shutil.which("gcc") is None,
        reason="spin or gcc is not installed; make protocol gets spin and runs the same searches",
    ),
]


def changes(search: Search) -> str:
    return " ".join(search.changes) or f"{search.claim}, {search.world}"


def test_every_switch_of_the_model_is_a_mutant_and_the_other_way_round() -> None:
    switches = set(re.findall(r"MUTANT_\w+", MODEL.read_text().partition("*/")[2]))
    switched = {change.removeprefix("-D") for search in MUTANTS for change in search.changes}
    assert switches == {name for name in switched if name.startswith("MUTANT_")}
    assert len(switched) == len(MUTANTS)


def test_what_refutes_a_mutant_is_proved_of_the_model_in_the_same_world() -> None:
    proved = {(search.world, search.claim) for search in PROOFS}
    for search in MUTANTS:
        assert (search.world, "i3" if search.claim == "i3" else "safe") in proved, search


def test_every_invariant_is_proved_together_and_has_a_mutant() -> None:
    formulas = dict(re.findall(r"^ltl (\w+) \{ (.*) \}$", MODEL.read_text(), re.MULTILINE))
    assert formulas["safe"] == "[] (" + " && ".join(name.upper() for name in SAFETY) + ")"
    assert set(formulas) == {"safe", "i3", *SAFETY}
    assert {search.claim for search in MUTANTS} == {"i3", *SAFETY}
    assert {search.world for search in PROOFS} == set(WORLDS)


def test_the_page_names_every_invariant_and_mutant_and_tests_that_exist() -> None:
    text = PAGE.read_text()
    for claim in ("i3", *SAFETY):
        assert f"**{claim.upper()}**" in text, claim
    for search in MUTANTS:
        (change,) = search.changes
        assert f"`{change.removeprefix('-D').removeprefix('MUTANT_')}`" in text, change
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 15
    for path, name in named:
        assert re.search(rf"^(def {name}\(|{name} = )", (ROOT / path).read_text(), re.MULTILINE), name


def test_without_a_compiler_the_error_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpinError, match="install gcc"):
        check.tools(tmp_path)


class TestSearches:
    pytestmark = spin

    @pytest.mark.parametrize("search", PROOFS, ids=changes)
    def test_the_model_holds_in_every_state(self, search: Search, tmp_path: Path) -> None:
        verdict = run(search, *check.tools(tmp_path))
        assert verdict.ok and verdict.said == "holds" and verdict.states > 100_000, verdict

    @pytest.mark.parametrize("search", MUTANTS, ids=changes)
    def test_spin_refutes_the_mutant(self, search: Search, tmp_path: Path) -> None:
        verdict = run(search, *check.tools(tmp_path))
        assert verdict.ok and verdict.said == "refuted" and verdict.story, verdict

    def test_every_statement_of_the_model_is_reached(self, tmp_path: Path) -> None:
        patient, hasty = (
            run(Search("one fault", "safe", changes), *check.tools(tmp_path))
            for changes in ((), ("-DMAX_FAULTS=0",))
        )
        assert patient.ok and hasty.ok
        assert ["running = 0" in line for line in patient.unreached] == [True], "nowhere does it give up"
        assert not set(patient.unreached) & set(hasty.unreached)

    def test_a_search_that_is_cut_off_is_no_proof(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(check, "DEPTH", 60)
        verdict = run(Search("one fault", "safe"), *check.tools(tmp_path))
        assert not verdict.ok and "search depth too small" in verdict.said

    def test_a_claim_that_holds_refutes_no_mutant(self, tmp_path: Path) -> None:
        search = next(search for search in MUTANTS if search.changes == ("-DMUTANT_NO_LEASE",))
        verdict = run(replace(search, claim="i4"), *check.tools(tmp_path))
        assert not verdict.ok and verdict.said == "holds"

    def test_a_model_that_spin_does_not_accept_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(SpinError, match="spin"):
            run(Search("one fault", "safe", ("-DREQUESTS=)",)), *check.tools(tmp_path))
