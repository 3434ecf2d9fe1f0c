"""Check the theorems of README.md with Coq, one file at a time.

    python -m proofs [--recheck] [--no-install]

Exit code 0: every theorem is proved, and rests on nothing but what ALLOWED in check.py names. 1: not so, or Coq cannot
be had.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from proofs.check import (
    ALLOWED,
    ProofError,
    assumptions,
    compile_file,
    coq,
    forbidden,
    listed,
    recheck,
    sources,
    stated,
)  # fmt: skip


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def check(*, install: bool, again: bool) -> None:
    """Everything, told as it goes.

    Raises:
        ProofError: something is not proved, or assumed that may not be.
    """
    if words := forbidden():
        raise ProofError("these words may not stand in a proof: " + ", ".join(words))
    if odd := set(stated()) ^ set(listed()):
        raise ProofError("either in README.md or in a file, and not in both: " + ", ".join(sorted(odd)))
    say(coq(install))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fieldprint-proofs-") as name:
        folder = Path(name)
        for file in sources():
            begun = time.perf_counter()
            compile_file(file, folder)
            say(f"{file}.v: accepted in {time.perf_counter() - begun:.1f} s")
        rests_on = assumptions(stated(), folder)
        if again:
            say(recheck(list(sources()), folder).strip())
    say("\ntheorem, and the axioms that it rests on:")
    width = max(len(theorem) for theorem in rests_on)
    for theorem, axioms in rests_on.items():
        say(f"  {theorem:{width}}  {', '.join(axiom.split('.')[-1] for axiom in sorted(axioms)) or 'none'}")
    if strange := {axiom for axioms in rests_on.values() for axiom in axioms} - ALLOWED:
        raise ProofError("assumed, and not allowed: " + ", ".join(sorted(strange)))
    say(f"allowed: {', '.join(sorted(ALLOWED))}")
    say(f"{len(rests_on)} theorems in {time.perf_counter() - started:.0f} s")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recheck", action="store_true", help="also with coqchk, all that is used included")
    parser.add_argument("--no-install", action="store_true", help="never install Coq")
    options = parser.parse_args()
    try:
        check(install=not options.no_install, again=options.recheck)
    except ProofError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
