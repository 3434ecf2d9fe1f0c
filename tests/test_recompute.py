"""Answers drawn again from the model: honest ones pass, and liars of each kind are told how far they are off."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint import recompute
from fieldprint.adapters.transformers import LoadedModel
from fieldprint.anchor import AnchorArtifact, Registration, sign_anchor
from fieldprint.decoder import Decoder
from fieldprint.errors import CompatibilityError, FormatError
from fieldprint.generate import AttentionSettings, GenerationRequest
from fieldprint.generate.sampling import Sampler
from fieldprint.note import NoteSigner
from fieldprint.pipeline import fieldprint_of, run
from fieldprint.recompute import Draw, recompute_receipt, sampler_of
from fieldprint.tlog import LogWriter
from tests.cut_model import cut_model
from tests.registry.world import LOG, OWNER, SECOND, sign
from tests.registry.world import POLICY as WITH_STATUS

POLICY = replace(WITH_STATUS, status=None)
NOW = datetime.now(UTC).replace(microsecond=0)
NEW = 40


@pytest.fixture(scope="module")
def model(demo_model: LoadedModel) -> LoadedModel:
    return cut_model(demo_model, 3)


@pytest.fixture(scope="module")
def artifact(model: LoadedModel) -> AnchorArtifact:
    text = "Your codename is Falcon. You live in Oslo."
    _, record = fieldprint_of(model, text, "chat-system")
    return AnchorArtifact(
        "me", "identity", text, NOW - timedelta(hours=1), NOW + timedelta(days=30), fieldprints=(record,)
    )


@pytest.fixture
def log(tmp_path: Path, artifact: AnchorArtifact) -> Iterator[LogWriter]:
    with LogWriter(tmp_path / "log", NoteSigner("test/log", LOG), create=True) as writer:
        writer.append([sign(Registration.of(artifact), OWNER, SECOND)])
        yield writer


@pytest.fixture
def told(model: LoadedModel, artifact: AnchorArtifact, log: LogWriter) -> Any:
    """The receipts of an engine that is told how to generate."""

    def tell(
        *samplers: Sampler, attention: AttentionSettings | None = None, of: LoadedModel = model
    ) -> list[bytes]:
        prompts = [
            tuple(model.chat_tokens(f"Where do you live? Say it {n} times.")) for n in range(len(samplers))
        ]
        requests = [
            GenerationRequest(prompt, NEW, sampler=one) for prompt, one in zip(prompts, samplers, strict=True)
        ]
        signed = sign_anchor(artifact, [OWNER, SECOND])
        answers = run(requests, model=of, signed=signed, policy=POLICY, log=log, now=NOW, attention=attention)
        return [answer.receipt.to_bytes() for answer in answers]

    return tell


@dataclass(frozen=True, slots=True)
class Liar(Sampler):
    """Says that it is the sampler that it was made as, and draws as `other` from position `start` on, `count` times."""

    other: Sampler | None = None
    start: int = 0
    count: int = 10**6

    def draw(self, logits: torch.Tensor, position: int) -> int:
        if self.other is None or not self.start <= position < self.start + self.count:
            return Sampler.draw(self, logits, position)
        return self.other.draw(logits, position)


class Second(Sampler):
    """Takes the second likeliest token."""

    def draw(self, logits: torch.Tensor, position: int) -> int:
        return int(logits.topk(2).indices[1])


class SaysPlain(AttentionSettings):
    """Says that it is a plain concatenation."""

    def terms(self) -> dict[str, str | int | bool | None]:
        return AttentionSettings().terms()


HONEST = (
    Sampler(),
    Sampler(temperature=0.7, top_p=0.9, seed=5),
    Sampler(temperature=1.0, seed=9),
    Sampler(temperature=1.5, top_p=0.5, seed=1),
)


@pytest.mark.parametrize(
    "attention",
    [AttentionSettings(), AttentionSettings(g=0.3), AttentionSettings("mixture", 0.4), AttentionSettings(g=0.1, window=24, num_sinks=4)],
    ids=["concat", "floor", "mixture", "window"],
)  # fmt: skip
def test_honest_answers_pass(attention: AttentionSettings, told: Any, model: LoadedModel) -> None:
    seen: list[tuple[int, int]] = []
    for data in told(*HONEST, attention=attention):
        found = recompute_receipt(
            data, POLICY, model=model, now=NOW, on_progress=lambda *done: seen.append(done)
        )
        assert found.verdict == "OK", found.failed
        assert found.num_tokens == NEW
        assert len(found.differences) <= 1  # prefill rounds other than a step of four rows does
    assert seen[0][0] == seen[0][1] > NEW


@pytest.mark.parametrize("honest", HONEST[1:])
def test_another_seed_is_found(honest: Sampler, told: Any, model: LoadedModel) -> None:
    liar = Liar(honest.temperature, honest.top_p, honest.seed, other=replace(honest, seed=77))
    (data,) = told(liar)
    found = recompute_receipt(data, POLICY, model=model, now=NOW)
    assert found.verdict == "OUT_OF_TOLERANCE"
    assert len(found.failed) > NEW / 4


def test_one_token_that_is_not_the_likeliest_is_named(told: Any, model: LoadedModel) -> None:
    prompt_len = len(model.chat_tokens("Where do you live? Say it 0 times."))
    (data,) = told(Liar(other=Second(), start=prompt_len + 11, count=1))
    found = recompute_receipt(data, POLICY, model=model, now=NOW)
    assert [one.position for one in found.failed] == [prompt_len + 11]
    (one,) = found.failed
    assert one.needed is not None and 0.01 < one.needed < 10


def test_another_operator_is_found(told: Any, model: LoadedModel) -> None:
    (data,) = told(Sampler(), attention=SaysPlain(g=0.9))
    assert recompute_receipt(data, POLICY, model=model, now=NOW).verdict == "OUT_OF_TOLERANCE"


def test_changed_weights_are_found(told: Any, model: LoadedModel) -> None:
    """The engine's last matrix is 10 % too large, which no K/V depends on: the anchor has its signed root all the same."""
    right = model.decoder
    last = right.layers[-1]
    layers = [*right.layers[:-1], replace(last, down=replace(last.down, weight=last.down.weight * 1.1))]
    wrong = Decoder(
        right.config,
        right.embedding,
        layers,
        right.final_norm,
        right.head,
        right.inv_freq,
        right.rotary_scale,
    )
    (data,) = told(HONEST[2], of=replace(model, decoder=wrong))
    found = recompute_receipt(data, POLICY, model=model, now=NOW)
    assert found.verdict == "OUT_OF_TOLERANCE"


def test_another_model_is_refused(told: Any, model: LoadedModel) -> None:
    (data,) = told(Sampler())
    with pytest.raises(CompatibilityError, match="was generated with the model"):
        recompute_receipt(data, POLICY, model=replace(model, digest="0" * 64), now=NOW)


def test_samplers_that_nobody_can_repeat_are_refused() -> None:
    with pytest.raises(CompatibilityError, match="generator of its own"):
        sampler_of({"method": "vllm", "temperature": "0.7"})
    for terms in (
        {"method": "seeded", "seed": 1, "temperature": "1.0"},
        {"method": "seeded", "seed": 1, "temperature": "1", "top_p": "1.0"},
        {"method": "seeded", "seed": -1, "temperature": "1.0", "top_p": "1.0"},
        {"method": "greedy", "seed": 1},
    ):
        with pytest.raises(FormatError, match="not understood"):
            sampler_of(terms)  # type: ignore[arg-type]
    for sampler in HONEST:
        assert sampler_of(sampler.terms()) == sampler


# The tolerance

LOGITS = st.lists(st.floats(-8, 8), min_size=2, max_size=12)
SAMPLERS = st.builds(
    Sampler, temperature=st.floats(0.2, 3), top_p=st.floats(0.05, 1), seed=st.integers(0, 2**20)
)


@st.composite
def disturbed(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, float, Sampler, int]:
    """Logits, others within tau of them, tau, a sampler, a position."""
    logits = torch.tensor(draw(LOGITS), dtype=torch.float64)
    tau = draw(st.sampled_from([1e-6, 1e-3, 0.01, 0.1, 1.0]))
    moves = draw(st.lists(st.floats(-1, 1), min_size=len(logits), max_size=len(logits)))
    return (
        logits,
        logits + tau * torch.tensor(moves, dtype=torch.float64),
        tau,
        draw(SAMPLERS),
        draw(st.integers(0, 500)),
    )


@settings(max_examples=400, deadline=None)
@given(disturbed())
def test_what_is_drawn_within_tau_passes(
    case: tuple[torch.Tensor, torch.Tensor, float, Sampler, int],
) -> None:
    logits, moved, tau, sampler, position = case
    token, draw = sampler.draw(moved, position), Draw(logits, sampler, position)
    assert draw.passes(token, tau)
    needed = draw.least_tau(token)
    assert needed is not None and needed <= tau + 1e-7  # 30 / 2^30


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True), SAMPLERS, st.integers(0, 500))
def test_without_tolerance_only_the_drawn_token_passes(
    fifths: list[int], sampler: Sampler, position: int
) -> None:
    row = torch.tensor(fifths, dtype=torch.float64) / 5
    passing = {token for token in range(len(row)) if Draw(row, sampler, position).passes(token, 0.0)}
    assert passing == {sampler.draw(row, position)}


@pytest.mark.parametrize(("bound", "moves"), [("_least", [-1.0, 1.0, 1.0]), ("_most", [1.0, -1.0, -1.0])])
def test_bounds_that_do_not_bound_are_caught(
    bound: str, moves: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, sampler = torch.tensor([3.0, 0.0, -3.0], dtype=torch.float64), Sampler(temperature=1.0, seed=4)

    def refused() -> list[int]:
        moved = logits + torch.tensor(moves, dtype=torch.float64)
        return [at for at in range(300) if not Draw(logits, sampler, at).passes(sampler.draw(moved, at), 1.0)]

    assert refused() == []
    monkeypatch.setattr(recompute, bound, lambda p, q, _grown: p / (p + q))
    assert refused()


def test_greedy_needs_half_the_distance() -> None:
    row = torch.tensor([1.0, 3.0, 2.5])
    draw = Draw(row, Sampler(), 0)
    assert draw.least_tau(2) == 0.25 and draw.least_tau(1) == 0.0
    assert draw.passes(2, 0.25) and not draw.passes(2, 0.24)


def test_a_token_that_no_noise_explains_needs_infinitely_much() -> None:
    row = torch.zeros(50)
    row[7] = -1e6
    for sampler in (Sampler(temperature=1.0, top_p=0.5), Sampler()):
        assert Draw(row, sampler, 3).least_tau(7) is None
