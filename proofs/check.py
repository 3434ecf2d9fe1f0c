"""What the theorems are, and whether Coq has proved them from what the real numbers need, and nothing else."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

FOLDER = Path(__file__).parent
LIMIT = 600  # seconds for one file
PACKAGES = ("coq", "libcoq-flocq")

# Coq's real numbers, and Flocq's use of excluded middle.
ALLOWED = {
    "ClassicalDedekindReals.sig_forall_dec",
    "ClassicalDedekindReals.sig_not_dec",
    "FunctionalExtensionality.functional_extensionality_dep",
    "Classical_Prop.classic",
}

# What leaves a proof out, assumes something, or tells the kernel to look away. There are no sections, so no variables.
FORBIDDEN = re.compile(
    r"\b(Admitted|admit|give_up|Abort|Axioms?|Parameters?|Conjectures?|Hypothes[ie]s|Variables?|Context|Declare"
    r"|Primitive|Unset|bypass_check|Load|native_compute)\b"
)


class ProofError(Exception):
    """Coq cannot be had, does not accept a file, or something was assumed that may not be."""


def sources() -> dict[str, str]:
    """The files in the order of their imports, by name: what stands in them besides comments and strings."""
    texts = {path.stem: without_comments(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.v")}
    needs = {
        name: [used for line in re.findall(r"^From Fieldprint Require (.+)\.$", text, re.MULTILINE)
               for used in line.split() if used in texts]
        for name, text in sorted(texts.items())
    }  # fmt: skip
    return {name: texts[name] for name in TopologicalSorter(needs).static_order()}


def without_comments(text: str) -> str:
    """The same lines with comments, which nest, and strings left out.

    Raises:
        ProofError: a comment or a string does not end.
    """
    depth, kept = 0, []
    for piece in re.findall(r'\(\*|\*\)|"(?:[^"]|"")*"|"|\n|.', text):
        if piece == "(*":
            depth += 1
        elif piece == "*)" and depth:
            depth -= 1
        elif piece == '"':
            raise ProofError("a string does not end")
        elif piece == "\n" or not (depth or piece.startswith('"')):
            kept.append(piece)
        elif piece.startswith('"'):
            kept.append("\n" * piece.count("\n"))
    if depth:
        raise ProofError("a comment does not end")
    return "".join(kept)


def forbidden() -> list[str]:
    """`File.v:line: word` for each forbidden word outside of comments."""
    return [
        f"{name}.v:{number}: {match[0]}"
        for name, text in sources().items()
        for number, line in enumerate(text.splitlines(), 1)
        for match in FORBIDDEN.finditer(line)
    ]


def stated() -> list[str]:
    """`File.name` of every Theorem, in order; a Lemma is a step on the way to one."""
    return [
        f"{name}.{theorem}"
        for name, text in sources().items()
        for theorem in re.findall(r"^Theorem (\w+)", text, re.MULTILINE)
    ]


def listed() -> list[str]:
    """`File.name` of every theorem in the tables of README.md."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(\w+\.\w+)` \|", text, re.MULTILINE)


def coq(install: bool = True) -> str:
    """Coq's version; as root on Debian what is missing is installed.

    Raises:
        ProofError: Coq or Flocq is missing and cannot be installed.
    """
    if not _present() and install and os.geteuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES]
        try:
            _call(command, FOLDER)
        except ProofError:
            _call(["apt-get", "update", "-q"], FOLDER)
            _call(command, FOLDER)
    if not _present():
        raise ProofError(
            "Coq with Flocq is needed. Debian: apt-get install coq libcoq-flocq; elsewhere: opam install coq-flocq"
        )
    return _call(["coqc", "--version"], FOLDER).split("\n")[0].strip()


def compile_file(name: str, folder: Path) -> None:
    """Compile one file in `folder`, where those that it needs are compiled.

    Raises:
        ProofError: with what Coq says.
    """
    shutil.copy(FOLDER / f"{name}.v", folder)
    _call(["coqc", "-q", "-Q", ".", "Fieldprint", f"{name}.v"], folder)


def assumptions(theorems: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """What each theorem rests on, as Coq prints it.

    Raises:
        ProofError: Coq does not know a theorem, or its answers cannot be told apart.
    """
    files = dict.fromkeys(theorem.split(".")[0] for theorem in theorems)
    lines = [f"Require Fieldprint.{name}." for name in files]
    lines += [f"Print Assumptions Fieldprint.{theorem}." for theorem in theorems]
    (folder / "Assumptions.v").write_text("\n".join(lines) + "\n", encoding="utf-8")
    answers = parse(_call(["coqc", "-q", "-Q", ".", "Fieldprint", "Assumptions.v"], folder))
    if len(answers) != len(theorems):
        raise ProofError(f"Coq gave {len(answers)} answers on {len(theorems)} theorems")
    return dict(zip(theorems, answers, strict=True))


def parse(said: str) -> list[list[str]]:
    """The names in each answer to `Print Assumptions`."""
    answers: list[list[str]] = []
    for line in said.splitlines():
        if line in ("Axioms:", "Closed under the global context"):
            answers.append([])
        elif line and not line.startswith(" "):
            if not answers:
                raise ProofError(f"Coq says something else: {line}")
            answers[-1].append(line.split(" :")[0].strip())
    return answers


def recheck(names: Sequence[str], folder: Path) -> str:
    """What coqchk, which reads compiled files only, says of these and of all that they use.

    Raises:
        ProofError: it refuses one, or finds an axiom that is not allowed, or a part of the kernel that was told to look
            away.
    """
    modules = [f"Fieldprint.{name}" for name in names]
    said = _call(["coqchk", "-silent", "-o", "-Q", ".", "Fieldprint", *modules], folder).strip()
    if strange := unusual(said):
        raise ProofError("coqchk: " + ", ".join(strange))
    return said


def unusual(summary: str) -> list[str]:
    """What coqchk's summary holds besides the axioms that are allowed; everything, if it is no summary."""
    if summary.count("<none>") < 3 or "* Axioms:" not in summary:
        return [summary or "nothing was said"]
    lines = [line.strip() for line in summary.partition("* Theory:")[2].splitlines()[1:]]
    return [
        line
        for line in lines
        if line
        and line != "* Axioms:"
        and not (line.startswith("* ") and line.endswith("<none>"))
        and not any(line.endswith(f".{axiom}") for axiom in ALLOWED)
    ]


def _present() -> bool:
    try:
        _call(["coqtop", "-q", "-batch", "-require-import-from", "Flocq", "Core"], FOLDER)
    except ProofError:
        return False
    return True


def _call(command: Sequence[str], folder: Path) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProofError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise ProofError(f"{' '.join(command[:2])}: {(done.stderr + done.stdout).strip()[:1500]}")
    return done.stdout + (done.stderr if command[0] == "coqchk" else "")
