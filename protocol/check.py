"""What Spin has to prove of `verification.pml`, and which changed models it has to refute."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).with_name("verification.pml")
SAFETY = ("i1", "i2", "i4", "i5", "i6", "i7", "i8", "i9")
LIMIT = 300  # seconds for one search
DEPTH = 1_000_000  # steps; a search that would need more is not complete and counts as failed

# Small worlds, each complete: tokens of an answer, cap, faults in a run, failed passes in a row that are allowed.
WORLDS = {
    "one fault": ("-DANSWER=2", "-DCAP=2", "-DFAULTS=1", "-DMAX_FAULTS=1"),
    "long answer": ("-DANSWER=3", "-DCAP=2", "-DFAULTS=1", "-DMAX_FAULTS=1"),
    "low cap": ("-DANSWER=2", "-DCAP=1", "-DFAULTS=2", "-DMAX_FAULTS=3"),
    "two faults": ("-DANSWER=2", "-DCAP=2", "-DFAULTS=2", "-DMAX_FAULTS=3"),
}


@dataclass(frozen=True)
class Search:
    """One run of Spin: a model, the claim, and whether it has to hold.

    world: of WORLDS. claim: `safe` is all of SAFETY at once. changes: what is defined besides the world.
    """

    world: str
    claim: str
    changes: tuple[str, ...] = ()
    holds: bool = True
    what: str = ""


@dataclass(frozen=True)
class Verdict:
    """What Spin said. `ok`: a claim that has to hold was searched completely without error; another was refuted.

    story: what the model printed on the way to the violation. unreached: statements that no run came to.
    """

    search: Search
    ok: bool
    said: str
    states: int
    depth: int
    seconds: float
    story: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()


class SpinError(Exception):
    """Spin or the compiler cannot be had, or does not accept the model."""


# The longest first: they are searched side by side.
PROOFS = (
    Search("two faults", "safe", what="every invariant but I3, two faults of any kind"),
    Search("low cap", "i3", what="every answer is finished, two faults of any kind"),
    Search("long answer", "safe", what="every invariant but I3, a horizon that moves within an answer"),
    Search("one fault", "i3", what="every answer is finished, one fault of any kind"),
    Search("one fault", "safe", what="every invariant but I3, one fault of any kind"),
)


def _mutant(world: str, claim: str, name: str, what: str) -> Search:
    return Search(world, claim, (f"-DMUTANT_{name}",), holds=False, what=what)


MUTANTS = (
    _mutant("two faults", "i1", "UNWIPED", "a lost page gets a place that is not wiped"),
    _mutant("one fault", "i1", "COMMIT_UNCHECKED", "leaves are made without the look at what they depend on"),
    _mutant("one fault", "i1", "HASH_FIRST", "the look was before the job's tokens were computed"),
    _mutant(
        "one fault", "i1", "ONLY_THE_FINDER", "only the request in whose part damage was found goes back"
    ),
    _mutant("one fault", "i1", "PREFIX_UNCHECKED", "a prefix is shared without a look after its last pass"),
    _mutant("one fault", "i1", "SILENT_REPAIR", "somebody else rewrites the anchor and tells nobody"),
    _mutant(
        "one fault", "i2", "BACK_TO_SUBMISSION", "a rollback goes to the horizon of the job's submission"
    ),
    _mutant("one fault", "i3", "NO_TIMEOUT", "a log that does not answer is waited for"),
    _mutant("one fault", "i3", "NO_RETRY", "after a log error no job is submitted again"),
    _mutant("low cap", "i3", "REBUILD_ONCE", "a rebuilt page that differs ends generation at once"),
    _mutant("one fault", "i3", "KEEP_LOST", "a page that was released too early stays where it is"),
    Search("low cap", "i3", ("-DMAX_FAULTS=2",), False, "as many failed passes in a row as faults"),
    _mutant("long answer", "i4", "NO_CAP", "decoding does not wait at the cap"),
    _mutant("one fault", "i5", "RELEASE_PROVISIONAL", "effects leave with the token"),
    _mutant("one fault", "i6", "NO_LEASE", "a job has no references on the pages that it reads"),
    _mutant("one fault", "i7", "REWRITE_LATER", "rows go on before the anchor is rewritten"),
    _mutant("one fault", "i7", "IGNORE_ALARM", "rows go on under an alarm of the scrub"),
    _mutant("one fault", "i8", "COMMIT_AT_SUBMISSION", "the horizon moves when the job is submitted"),
    _mutant("one fault", "i8", "BELIEVE_THE_LOG", "an answer counts without being followed"),
    _mutant("one fault", "i8", "LATE_ANSWER", "the answer to a given-up worker counts for the next job"),
    _mutant("one fault", "i9", "APPEND_FIRST", "leaves go to the log before the look is judged"),
)


def tools(cache: Path) -> tuple[str, str]:
    """Spin and a C compiler; Debian's spin is unpacked below `cache`, and not installed, where there is none.

    Raises:
        SpinError: there is no compiler, or no Spin and apt cannot get it.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SpinError("Spin's search is a C program: install gcc")
    unpacked = cache / "usr/bin/spin"
    found = shutil.which("spin") or (str(unpacked) if unpacked.exists() else None)
    if found is None:
        cache.mkdir(parents=True, exist_ok=True)
        try:
            _call(["apt-get", "download", "-q", "spin"], cache)
        except SpinError:
            _call(["apt-get", "update", "-q"], cache)
            _call(["apt-get", "download", "-q", "spin"], cache)
        (archive,) = cache.glob("spin_*.deb")
        _call(["dpkg-deb", "-x", str(archive), str(cache)], cache)
        found = str(unpacked)
    return found, compiler


def run(search: Search, spin: str, compiler: str) -> Verdict:
    """Spin's verdict on one search.

    Raises:
        SpinError: the model is not accepted, or the search did not end in time.
    """
    started = time.perf_counter()
    defines = [*(d for d in WORLDS[search.world] if not _overridden(d, search)), *search.changes]
    live = search.claim == "i3"
    with tempfile.TemporaryDirectory(prefix="fieldprint-protocol-") as name:
        folder = Path(name)
        shutil.copy(MODEL, folder / "model.pml")
        _call([spin, "-a", *defines, "model.pml"], folder)
        # States are kept compressed and exact; refuting needs few of them, and a lesser compiler is quicker there.
        options = ["-O2", "-DCOLLAPSE"] if search.holds else ["-O1", "-DT_REVERSE"]
        options += ["-DNFAIR=3"] if live else ["-DSAFETY"]
        _call([compiler, "-w", *options, "-o", "pan", "pan.c"], folder)
        how = ["-a", "-f"] if live else []
        said = _call(["./pan", *how, "-N", search.claim, f"-m{DEPTH}"], folder)
        story: tuple[str, ...] = ()
        if (folder / "model.pml.trail").exists():
            told = _call([spin, "-t", *defines, "model.pml"], folder, check=False)
            story = tuple(line.strip() for line in told.splitlines() if _OF_STORY.match(line))
    errors, states, depth = (int(_found(pattern, said)) for pattern in _NUMBERS)
    partial = [text for text in _INCOMPLETE if text in said]
    complete = not partial and not errors
    ok = complete if search.holds else errors > 0
    what = "holds" if complete else "refuted" if errors else f"not complete: {', '.join(partial)}"
    unreached = tuple(line for line in _UNREACHED.findall(said) if '"-end-"' not in line)
    return Verdict(search, ok, what, states, depth, time.perf_counter() - started, story, unreached)


def run_all(
    searches: Sequence[Search],
    spin: str,
    compiler: str,
    done: Callable[[Verdict], None] | None = None,
) -> list[Verdict]:
    """The verdicts in the order of the searches; as many side by side as there are processors, at most four.

    Raises:
        SpinError: as `run`.
    """

    def one(search: Search) -> Verdict:
        verdict = run(search, spin, compiler)
        if done is not None:
            done(verdict)
        return verdict

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        return list(threads.map(one, searches))


_OF_STORY = re.compile(r"\s*(loop|device|world|FAULT|<<<<<START)")
_UNREACHED = re.compile(r"model\.pml:\d+, state \d+, .*")
_NUMBERS = (r"errors: (\d+)", r"(\d+) states, stored", r"depth reached (\d+)")
_INCOMPLETE = ("max search depth too small", "out of memory", "Search not completed", "aborted")


def _found(pattern: str, said: str) -> str:
    match = re.search(pattern, said)
    if match is None:
        raise SpinError(f"Spin's search said nothing of {pattern!r}: {said[-300:]}")
    return match[1]


def _overridden(define: str, search: Search) -> bool:
    return any(change.split("=")[0] == define.split("=")[0] for change in search.changes)


def _call(command: Sequence[str], folder: Path, *, check: bool = True) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SpinError(f"{command[0]}: {error}") from error
    if check and done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines() or ["no message"]
        raise SpinError(f"{' '.join(command[:4])}: {' / '.join(said[:3])[:400]}")
    return done.stdout
