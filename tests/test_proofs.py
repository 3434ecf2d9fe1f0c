"""The theorems of proofs/: what needs no Coq, and, where there is Coq, that it accepts them and refuses what is no proof."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proofs import check
from proofs.check import (
    ALLOWED,
    FOLDER,
    ProofError,
    assumptions,
    compile_file,
    forbidden,
    listed,
    parse,
    sources,
    stated,
)

ROOT = Path(__file__).parent.parent
coq = pytest.mark.skipif(
    shutil.which("coqc") is None, reason="Coq is not installed; make proofs says what to install"
)

UNPROVED = {
    "admitted": "Theorem wrong : 1 = 2.\nProof. Admitted.\n",
    "admit": "Theorem wrong : 1 = 2.\nProof. admit. Admitted.\n",
    "axiom": "Axiom wrong : 1 = 2.\n",
    "parameter": "Parameter n : nat.\n",
    "hypothesis": "Hypothesis wrong : 1 = 2.\n",
    "unchecked": "#[bypass_check(guard)] Fixpoint f (n : nat) : False := f n.\n",
    "two on a line": "Definition n := 1. Axiom wrong : n = 2.\n",
    "after a comment": "(* (* *) *) Axiom wrong : 1 = 2.\n",
    "after a comment of two lines": '(* "\n" *)\nAxiom wrong : 1 = 2.\n',
}


def test_nothing_is_left_out_or_assumed() -> None:
    assert forbidden() == []


def test_every_theorem_is_in_the_tables_and_the_other_way_round() -> None:
    assert sorted(listed()) == sorted(stated())
    assert len(set(listed())) == len(listed()) > 50


def test_files_come_after_those_that_they_need() -> None:
    order = list(sources())
    assert set(order) == {path.stem for path in FOLDER.glob("*.v")}
    assert order.index("Quantize") < order.index("Formats") and order.index("Mass") < order.index("Attention")


@pytest.mark.parametrize("text", UNPROVED.values(), ids=UNPROVED)
def test_a_file_that_proves_nothing_is_noticed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Wrong.v").write_text(text)
    monkeypatch.setattr(check, "FOLDER", tmp_path)
    assert forbidden()


def test_comments_and_strings_are_not_read() -> None:
    text = 'a (* Axiom (* "*)" *) Axiom\n*) b "Axiom (* "" " c'
    assert re.sub(r"\s+", " ", check.without_comments(text)) == "a b c"
    assert check.without_comments(text).count("\n") == 1
    for open_ended in ("(* (* *)", '"'):
        with pytest.raises(ProofError, match="does not end"):
            check.without_comments(open_ended)


def test_answers_about_axioms_are_told_apart() -> None:
    said = "Closed under the global context\nAxioms:\na.b : P\nc.d\n  : forall x,\n    Q x\nAxioms:\nwrong is assumed\n"
    assert parse(said) == [[], ["a.b", "c.d"], ["wrong is assumed"]]
    with pytest.raises(ProofError, match="something else"):
        parse("Warning\n")


def test_what_coqchk_finds_is_read() -> None:
    axiom, rest = (
        "Coq.Logic.Classical_Prop.classic",
        "on guards: <none>\n\n* on types: <none>\n\n* on more: <none>",
    )
    summary = f"CONTEXT SUMMARY\n===\n\n* Theory: Set is predicative\n\n* Axioms:\n    {axiom}\n\n* {rest}"
    assert check.unusual(summary) == []
    assert check.unusual(summary.replace(axiom, "Fieldprint.Mass.wrong")) == ["Fieldprint.Mass.wrong"]
    assert check.unusual(summary.replace("guards: <none>", "guards:\n    f"))
    assert check.unusual("") and check.unusual("all is well")


def test_without_coq_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProofError, match="libcoq-flocq"):
        check.coq()


def test_as_root_on_debian_coq_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub = "#!/bin/sh\necho The Coq Proof Assistant, version 0\n"
    (tmp_path / "stub").write_text(stub)
    (tmp_path / "stub").chmod(0o755)
    apt = tmp_path / "apt-get"  # finds packages only after an update
    apt.write_text(
        f"#!/bin/sh\nPATH=/usr/bin:/bin; cd {tmp_path}\n"
        'case "$1" in update) touch lists;; *) test -e lists && cp stub coqc && cp stub coqtop;; esac\n'
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(ProofError, match="libcoq-flocq"):
        check.coq(install=False)
    assert check.coq() == "The Coq Proof Assistant, version 0"


class TestCoq:
    pytestmark = coq

    def test_what_is_assumed_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "from").mkdir()
        (tmp_path / "to").mkdir()
        monkeypatch.setattr(check, "FOLDER", tmp_path / "from")
        (tmp_path / "from/Wrong.v").write_text(
            "Axiom wrong : 1 = 2.\nTheorem t : 2 = 1.\nProof. exact (eq_sym wrong). Qed.\nTheorem u : 1 = 1.\nProof. easy. Qed.\n"
        )
        compile_file("Wrong", tmp_path / "to")
        found = assumptions(["Wrong.t", "Wrong.u"], tmp_path / "to")
        assert len(found["Wrong.t"]) == 1 and not set(found["Wrong.t"]) <= ALLOWED
        assert found["Wrong.u"] == []

    def test_a_proof_that_does_not_end_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "from").mkdir()
        (tmp_path / "to").mkdir()
        monkeypatch.setattr(check, "FOLDER", tmp_path / "from")
        for text in ("Theorem t : 1 = 1.\nProof.\n", "Theorem t : 1 = 2.\nProof. reflexivity. Qed.\n"):
            (tmp_path / "from/Wrong.v").write_text(text)
            with pytest.raises(ProofError, match="coqc"):
                compile_file("Wrong", tmp_path / "to")

    @pytest.mark.slow
    def test_coq_proves_every_theorem(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "proofs", "--no-install"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert all(re.search(rf"^  {re.escape(name)} ", done.stdout, re.MULTILINE) for name in listed())
