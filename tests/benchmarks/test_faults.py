"""The fault campaign finds what it injects, and says so when an engine does not."""

import json
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.faults.__main__ import main  # noqa: E402
from benchmarks.faults.campaign import Part, State, counted, is_miss, rows_of, table_of  # noqa: E402
from benchmarks.faults.observe import Reader  # noqa: E402
from benchmarks.faults.plan import KINDS, SERVICE_KINDS, Fault, Plan, Strike, plan_of  # noqa: E402
from benchmarks.faults.run import Run  # noqa: E402
from benchmarks.faults.world import Scene, World, make_world  # noqa: E402
from fieldprint.commit.committer import CommitJob, Committer  # noqa: E402
from fieldprint.generate import Committed, Event, Finished, GenerationResult, Provisional, RolledBack  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is too small for two
    yield make_world(layers=1)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scene(world: World) -> Scene:
    """Three requests and forty tokens."""
    first = world.scenes[0]
    requests = tuple(replace(request, max_new_tokens=40) for request in first.requests[1:4])
    return replace(first, name="small", requests=requests)


@pytest.mark.parametrize("kind", KINDS)
def test_faults_of_each_kind_are_found(world: World, scene: Scene, kind: str) -> None:
    strikes = tuple(Strike(wait, (Fault(kind, wait),)) for wait in (60, 9, 4))
    outcome = Run(world, scene, Plan(0, strikes)).play()
    assert outcome.wrong == []
    assert [struck.outcome for struck in outcome.struck].count("found") >= 1
    assert {struck.outcome for struck in outcome.struck} <= {"found", "gone", "idle"}
    assert outcome.identical and outcome.receipts == 3
    assert outcome.released == 3 * 40 and outcome.unverified == 0


def test_bursts_are_found(world: World, scene: Scene) -> None:
    outcome = Run(world, scene, plan_of(1)).play()
    assert outcome.wrong == [] and outcome.identical
    assert {struck.outcome for struck in outcome.struck} <= {"found", "gone", "idle"}


class Unchecked:
    """Digests that are right whatever lies in the pages."""

    def __init__(self, job: CommitJob) -> None:
        self._digests = np.concatenate([job.pinned, *(request.expected for request in job.requests)])

    def ready(self) -> bool:
        return True

    def digests(self) -> np.ndarray:
        return self._digests


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that commit without looking at the pages again."""
    whole = Committer.submit
    monkeypatch.setattr(
        Committer, "submit", lambda self, job: whole(self, replace(job, hashing=Unchecked(job)))
    )


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("kind", ["swapped anchor", "bit flip in the newest page", "stale page"])
def test_an_engine_that_does_not_look_is_a_miss(world: World, scene: Scene, kind: str) -> None:
    outcome = Run(world, scene, Plan(0, (Strike(60, (Fault(kind, 0),)),))).play()
    assert len(outcome.struck) == 1 and outcome.struck[0].outcome != "found"
    assert outcome.unverified and any("committed up to" in wrong for wrong in outcome.wrong)


@pytest.mark.usefixtures("blind")
def test_a_miss_makes_the_command_fail_and_says_how_to_see_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = str(tmp_path / "state")
    options = ["--layers", "1", "--whole", "0", "--processes", "1", "--no-record", "--state", state, "--json"]
    assert main([*options, "--faults", "1", "--only", "zeroed page"]) == 1
    shown = capsys.readouterr()
    assert "MISS in seed 0" in shown.err and "--replay 0" in shown.err
    rows = {(row["cell"], row["metric"]): row["ours"] for row in json.loads(shown.out)}
    assert rows["the first 1 layers, float32", "misses"] >= 1
    # The same call again has nothing left to play, and the miss is still there.
    assert main([*options, "--faults", "1", "--only", "zeroed page"]) == 1


def test_a_seed_gives_one_plan_and_all_kinds_come() -> None:
    assert plan_of(7) == plan_of(7) != plan_of(8)
    drawn = {fault.kind for seed in range(40) for strike in plan_of(seed).strikes for fault in strike.faults}
    assert drawn == set(KINDS)
    only = {f.kind for strike in plan_of(3, ["zeroed page"]).strikes for f in strike.faults}
    assert only == {"zeroed page"}


def test_no_strike_fails_more_passes_in_a_row_than_the_engine_allows() -> None:
    for strike in (strike for seed in range(200) for strike in plan_of(seed).strikes):
        services = [fault for fault in strike.faults if fault.kind in SERVICE_KINDS]
        assert len(services) <= 1 and not (services and strike.again)


def result(tokens: tuple[int, ...]) -> GenerationResult:
    return GenerationResult((1, 2), tokens, "text", "length", bytes(16))


def stream(*events: Event) -> Generator[Event]:
    yield from events


GOOD: list[Event] = [
    Provisional(0, 2, 5),
    Provisional(0, 3, 9),
    RolledBack(0, 3, "a context page was damaged"),
    Provisional(0, 3, 6),
    Committed(0, 4),
    Finished(0, result((5, 6))),
]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({}, None),
        ({3: Provisional(0, 3, 7)}, "released token 7"),
        ({4: Committed(0, 3)}, "released token 6"),  # finished, and never said to be committed
        ({5: Finished(0, result((5, 7)))}, "another text"),
        ({5: Committed(0, 4)}, "did not finish"),
    ],
)
def test_the_reader_of_the_events_notices(change: dict[int, Event], what: str | None) -> None:
    reader = Reader([result((5, 6))])
    events = [change.get(index, event) for index, event in enumerate(GOOD)]
    assert list(reader.follow(stream(*events))) == events
    assert reader.compare() == (what not in ("another text", "did not finish"))
    assert (reader.wrong == []) == (what is None)
    assert what is None or any(what in wrong for wrong in reader.wrong)


def record(seed: int, *faults: list[Any], **others: Any) -> dict[str, Any]:
    plain = {"part": "p", "seed": seed, "scene": "plain", "identical": True, "released": 9, "unverified": 0}
    return plain | {"receipts": 1, "wrong": [], "seconds": 1.0, "faults": list(faults)} | others


FOUND = ["zeroed page", "found", 3, 1, "pages [4]"]
GONE = ["zeroed page", "gone", 0, 0, "pages [4]"]
MISSED = ["zeroed page", "missed", 0, 0, "pages [4]"]


def test_what_is_a_miss() -> None:
    assert not is_miss(record(0, FOUND, GONE))
    for bad in (
        record(0, FOUND, MISSED),
        record(0, FOUND, identical=False),
        record(0, FOUND, unverified=1),
        record(0, FOUND, wrong=["page 3 is lost"]),
    ):
        assert is_miss(bad)


def test_counts_of_the_results() -> None:
    records = [record(0, FOUND, GONE), record(1, [*FOUND[:2], 8, 2, ""], MISSED)]
    assert [counted(r) for r in records] == [1, 2]
    rows = {
        (r["cell"], r["metric"]): r["ours"] for r in rows_of(Part("p", "cpu", "float32", 2, 9, 0), records)
    }
    kind = "p: zeroed page"
    assert rows[kind, "injected"] == 3 and rows[kind, "found"] == 2
    assert rows[kind, "steps until found, most"] == 8 and rows[kind, "steps until found, mean"] == 5.5
    assert rows[kind, "gone or idle, not counted"] == 1
    assert rows["p", "faults"] == 3 and rows["p", "misses"] == 1


def test_an_interrupted_campaign_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state = State(path, {"code": "a"})
    state.add(record(0, FOUND))
    state.add(record(1, GONE))
    whole = path.read_text()
    path.write_text(whole[:-20])  # killed while it wrote
    assert State(path, {"code": "a"}).records == [record(0, FOUND)]
    path.write_text(whole)
    assert State(path, {"code": "a"}).records == [record(0, FOUND), record(1, GONE)]
    assert State(path, {"code": "b"}).records == []


ROOT = Path(__file__).parent.parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("faults_*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_documented_counts_are_the_recorded_ones(path: Path) -> None:
    assert table_of(json.loads(path.read_text())).strip() in (ROOT / "docs" / "faults.md").read_text()


def test_a_table_has_a_line_for_each_kind_and_the_sums() -> None:
    rows = rows_of(Part("p", "cpu", "float32", 2, 9, 0), [record(0, FOUND, ["log hangs", "found", 1, 1, ""])])
    table = table_of({"device": "2 cores", "commit": "0123456789", "rows": rows})
    assert table.startswith("2 cores, commit 0123456:")
    assert "| zeroed page | 1 | 1 | 3.0 | 3 |" in table and "| log hangs | 1 | 1 | 1.0 | 1 |" in table
    assert (
        "2 faults in 1 runs, 0 misses; 9 tokens released, 0 of them unverified; 1 receipts verified." in table
    )
