"""Decoding under an anchor with everything on, beside plain transformers `generate` with SDPA on the same model.

Time is taken from the first token to the last; ours ends when the last token is committed: hashed, in the log, under
a signed checkpoint. `off` is our engine without a log.
"""

import pydoc_data.topics
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import transformers
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.shapes import FIRST_TOKEN_CONTEXT, FIRST_TOKEN_REPEATS, DecodeShape
from fieldprint.adapters.model_folder import prepare_demo_model
from fieldprint.adapters.transformers import LoadedModel, load_model
from fieldprint.anchor import KINDS, AnchorArtifact, KindRule, Policy, sign_anchor
from fieldprint.demo.recall import ANCHOR_TEXT
from fieldprint.generate import (
    AttentionSettings,
    Engine,
    EngineSettings,
    Finished,
    GenerationRequest,
    Provisional,
)
from fieldprint.note import NoteSigner
from fieldprint.pipeline import anchor_tokens, fieldprint_of, page_pool
from fieldprint.promote import promote_anchor
from fieldprint.tlog import LogWriter
from fieldprint.verify import VerifiedAnchor, verify_anchor

Times = tuple[float, float]  # seconds to the first token, seconds from it to the end


class Clock(transformers.StoppingCriteria):  # type: ignore[misc]
    """Notes when each token of transformers' `generate` was there; never stops it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Bench:
    """The model twice, in transformers and in the engine, with one verified anchor."""

    def __init__(self) -> None:
        folder = prepare_demo_model()
        self.model: LoadedModel = load_model(folder)
        self.peer = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
        )
        self.key = Ed25519PrivateKey.generate()
        self.signer = NoteSigner("fieldprint.local/bench", self.key)
        self.anchor = self._anchor()
        topics: dict[str, str] = pydoc_data.topics.topics
        self.ids = self.model.encode("\n".join(topics[name] for name in sorted(topics))[:400_000])

    def _anchor(self) -> VerifiedAnchor:
        _, record = fieldprint_of(self.model, ANCHOR_TEXT, "chat-system")
        now = datetime.now(UTC).replace(microsecond=0)
        artifact = AnchorArtifact(
            "bench", "identity", ANCHOR_TEXT, now, now + timedelta(days=1), fieldprints=(record,)
        )
        raw = self.key.public_key().public_bytes_raw()
        rule = KindRule(("owner",))
        policy = Policy(
            {"owner": raw}, dict.fromkeys(KINDS, rule), ("owner",), 1, str(self.signer.verifier_key)
        )
        return verify_anchor(
            sign_anchor(artifact, [self.key]), policy, now=now, registry=None, model=self.model.digest
        )

    def prompts(self, batch: int, context: int) -> list[tuple[int, ...]]:
        """Different stretches of real text."""
        return [tuple(self.ids[i * 1009 : i * 1009 + context]) for i in range(batch)]

    def ours(self, batch: int, context: int, new_tokens: int, *, verification: bool) -> Times:
        """Our engine under the pinned anchor."""
        requests = [GenerationRequest(prompt, new_tokens) for prompt in self.prompts(batch, context)]
        settings = EngineSettings()
        decoder = self.model.decoder
        pool = page_pool(decoder, requests, AttentionSettings(), settings, self.anchor)
        pinned = promote_anchor(self.anchor, decoder, pool, anchor_tokens(self.model, self.anchor))
        engine = Engine(decoder, pool, decode=self.model.decode, model=self.model.digest, settings=settings)
        engine.decoder_for(batch)  # weights are packed once in the life of a process
        with _log(self.signer, wanted=verification) as log:
            started = time.perf_counter()
            first = 0.0
            seen: set[int] = set()
            finished = 0
            for event in engine.generate(requests, anchor=pinned, log=log):
                if isinstance(event, Provisional) and event.request not in seen:
                    seen.add(event.request)
                    first = time.perf_counter()
                finished += isinstance(event, Finished)
            end = time.perf_counter()
        if finished != batch:
            raise RuntimeError("a request did not finish")
        return first - started, end - first

    def theirs(self, batch: int, context: int, new_tokens: int) -> Times:
        """Plain transformers: the same prompts, no anchor, nothing verified."""
        ids = torch.tensor(self.prompts(batch, context))
        clock = Clock()
        config = transformers.GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        self.peer.generation_config = config
        with torch.inference_mode():
            started = time.perf_counter()
            out = self.peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                stopping_criteria=transformers.StoppingCriteriaList([clock]),
            )
        if out.shape[1] != context + new_tokens:
            raise RuntimeError("transformers generated another number of tokens")
        return clock.times[0] - started, clock.times[-1] - clock.times[0]


@contextmanager
def _log(signer: NoteSigner, *, wanted: bool) -> Iterator[LogWriter | None]:
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder, LogWriter(Path(folder) / "log", signer, create=True) as log:
        yield log


def measure_decode(bench: Bench, shape: DecodeShape) -> list[dict[str, Any]]:
    """Rows of one shape: tokens per second beside transformers, and the share of time that verification takes.

    Runs take turns, and the best of each counts: what else runs on a machine only ever adds time.
    """
    steps = shape.batch * (shape.new_tokens - 1)
    runs: dict[str, list[float]] = {"on": [], "off": [], "transformers": []}
    for _ in range(shape.repeats):
        size = (shape.batch, shape.context, shape.new_tokens)
        runs["transformers"].append(bench.theirs(*size)[1])
        runs["on"].append(bench.ours(*size, verification=True)[1])
        runs["off"].append(bench.ours(*size, verification=False)[1])
    seconds = {name: min(values) for name, values in runs.items()}
    rate = {name: round(steps / value, 2) for name, value in seconds.items()}
    return [
        {
            "cell": f"decode, {shape.name}",
            "metric": "tokens/s, anchor + commitments + scrubbing on",
            "unit": "tokens/s",
            "ours": rate["on"],
            "peers": {"transformers generate (SDPA), nothing verified": rate["transformers"]},
            "ratio": round(rate["on"] / rate["transformers"], 3),
        },
        {
            "cell": f"decode, {shape.name}",
            "metric": "share of the time that verification takes",
            "unit": "fraction",
            "ours": round(1 - seconds["off"] / seconds["on"], 4),
            "peers": {"ours, verification off (tokens/s)": rate["off"]},
            "ratio": round(rate["on"] / rate["off"], 3),
        },
    ]


def measure_first_token(bench: Bench) -> dict[str, Any]:
    """Time to the first token of a long prompt."""
    size = (1, FIRST_TOKEN_CONTEXT, 2)
    pairs = [
        (bench.ours(*size, verification=True)[0], bench.theirs(*size)[0]) for _ in range(FIRST_TOKEN_REPEATS)
    ]
    ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    return {
        "cell": f"first token, prompt of {FIRST_TOKEN_CONTEXT}",
        "metric": "time to first token",
        "unit": "s",
        "ours": round(ours, 4),
        "peers": {"transformers generate (SDPA)": round(theirs, 4)},
        "ratio": round(theirs / ours, 3),
    }


def measure_all(shapes: Sequence[DecodeShape]) -> Iterator[dict[str, Any]]:
    """All rows of these shapes, one after the other."""
    bench = Bench()
    yield measure_first_token(bench)
    for shape in shapes:
        yield from measure_decode(bench, shape)
