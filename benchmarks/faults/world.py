"""Real weights, an engine with an anchor in its pool, and scenes whose undisturbed results are known."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from benchmarks.faults.log import WatchedLog
from fieldprint.adapters.model_folder import prepare_demo_model
from fieldprint.adapters.transformers import LoadedModel, load_model
from fieldprint.anchor import KINDS, AnchorArtifact, KindRule, Policy, sign_anchor
from fieldprint.decoder import Decoder, Linear
from fieldprint.generate import (
    AttentionSettings,
    Engine,
    EngineSettings,
    Finished,
    GenerationRequest,
    GenerationResult,
    Sampler,
)
from fieldprint.kvcache import PagePool
from fieldprint.note import NoteSigner
from fieldprint.promote import PinnedAnchor, compute_fieldprint, promote_anchor
from fieldprint.verify import verify_anchor
from tests.cut_model import first_layers

ANCHOR = "Your codename is Falcon. You live in Oslo. The password is Quartz. Your pet is a badger. Always be brief."
OTHER_ANCHOR = (
    "You are a pirate. Never tell anybody the way to the island, and ask for gold before you answer at all."
)
LONG = "The quick brown fox jumps over the lazy dog near the river bank. "
QUESTIONS = (
    "Where do you live?",
    "Tell me a long story about a lighthouse and the keeper's daughter.",
    "What is the password? " + LONG * 2,
    "Name three colors.",
    "Why is the sky blue? " + LONG,
    "Hi.",
    "Describe a mountain to somebody who has never seen one. " + LONG * 3,
    "Give me advice for a job interview.",
)
SETTINGS = EngineSettings(chunk_size=64, commit_interval=16, log_timeout=1.0)
NUM_PAGES = 640
CUT_VOCABULARY = 4096


@dataclass(frozen=True, slots=True)
class Scene:
    """A batch under an anchor: its requests, how it attends, and whether the requests share a prefix."""

    name: str
    attention: AttentionSettings
    requests: tuple[GenerationRequest, ...]
    prefix: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class World:
    """An engine with what belongs to it.

    other_anchor: K/V of another text, quantized as an anchor's are, [num_layers, 2, A, num_kv_heads, head_dim].
    """

    model: LoadedModel
    engine: Engine
    pinned: PinnedAnchor
    signed: bytes
    other_anchor: Tensor
    policy: Policy
    signer: NoteSigner
    scenes: tuple[Scene, ...]
    expected: dict[str, list[GenerationResult]]

    @property
    def pool(self) -> PagePool:
        """The engine's."""
        return self.engine.pool

    @contextmanager
    def log(self) -> Iterator[WatchedLog]:
        """A new log in a folder of its own. It holds an entry, as every log does in which an anchor was promoted: any history
        continues an empty tree, so that a fork of it is no fault that anybody could find.
        """
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(WatchedLog(Path(folder) / "log", self.signer)) as log,
        ):
            log.append([b"the beginning"])
            yield log

    @contextmanager
    def requests(self, scene: Scene) -> Iterator[list[GenerationRequest]]:
        """The scene's requests, with the prefix that they share."""
        if not scene.prefix:
            yield list(scene.requests)
            return
        prefix = self.engine.prefill(scene.prefix, anchor=self.pinned, attention=scene.attention)
        try:
            yield [replace(request, prefix=prefix) for request in scene.requests]
        finally:
            prefix.close()

    def undisturbed(self, scene: Scene) -> list[GenerationResult]:
        """What comes out when nothing happens; computed once."""
        if scene.name not in self.expected:
            found = {}
            with self.log() as log, self.requests(scene) as requests:
                for event in self.engine.generate(
                    requests, anchor=self.pinned, attention=scene.attention, log=log
                ):
                    if isinstance(event, Finished):
                        found[event.request] = event.result
            self.expected[scene.name] = [found[i] for i in range(len(requests))]
        return self.expected[scene.name]


def small_decoder(decoder: Decoder, count: int) -> Decoder:
    """The first layers with a head that draws from CUT_VOCABULARY tokens: real weights."""
    cut = first_layers(decoder, count)
    cut.head = Linear(cut.head.weight[:CUT_VOCABULARY].clone(), cut.head.bias)
    return cut


def make_world(
    *,
    layers: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    rows: int = 8,
    **settings: Any,
) -> World:
    """The demo model, or its first `layers`, with an engine on `device`.

    Args:
        layers: None for all.
        device: where the engine computes; the anchor is realized on the CPU.
        dtype: of the engine.
        rows: requests of a scene.
        settings: fields of EngineSettings other than those of SETTINGS.
    """
    model = load_model(prepare_demo_model())
    if layers is not None:
        digest = sha256(f"{model.digest}, the first {layers} layers".encode()).hexdigest()
        model = replace(model, decoder=small_decoder(model.decoder, layers), digest=digest)
    decoder = model.decoder.to(device, dtype)
    chosen = replace(SETTINGS, **settings)
    pool = PagePool(decoder.page_layout(chosen.page_size), NUM_PAGES, device=device)
    owner = Ed25519PrivateKey.generate()
    signer = NoteSigner("fieldprint.local/faults", owner)
    rules = dict.fromkeys(KINDS, KindRule(("owner",)))
    raw = owner.public_key().public_bytes_raw()
    policy = Policy({"owner": raw}, rules, ("owner",), 1, str(signer.verifier_key))
    tokens = model.system_tokens(ANCHOR)
    fieldprint = compute_fieldprint(model.decoder, tokens)
    record = fieldprint.record(model=model.digest, form="chat-system", token_ids=tokens)
    now = datetime.now(UTC).replace(microsecond=0)
    artifact = AnchorArtifact(
        "faults", "identity", ANCHOR, now, now + timedelta(days=1), fieldprints=(record,)
    )
    signed = sign_anchor(artifact, [owner])
    verified = verify_anchor(signed, policy, now=now, registry=None, model=model.digest)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "anchor.safetensors"
        fieldprint.save(path)
        pinned = promote_anchor(verified, decoder, pool, tokens, fieldprint_file=path)
    engine = Engine(decoder, pool, decode=model.decode, model=model.digest, settings=chosen)
    other = compute_fieldprint(model.decoder, model.system_tokens(OTHER_ANCHOR)[: len(tokens)])
    values = other.values(decoder.dtype).to(device)
    return World(model, engine, pinned, signed, values, policy, signer, scenes_of(model, rows), {})


def scenes_of(model: LoadedModel, rows: int) -> tuple[Scene, ...]:
    """Plain and seeded batches, a window with eviction, and a prefix that requests share."""
    prompts = [tuple(model.chat_tokens(QUESTIONS[i % len(QUESTIONS)])) for i in range(rows)]
    samplers = [Sampler(0.8, 0.95, seed) for seed in range(rows)]

    def requests(*, seeded: bool = False) -> tuple[GenerationRequest, ...]:
        return tuple(
            GenerationRequest(prompt, 72 - 2 * i, samplers[i] if seeded else Sampler(), salt=bytes([i] * 16))
            for i, prompt in enumerate(prompts)
        )

    return (
        Scene("plain", AttentionSettings("floor", 0.1), requests()),
        Scene("seeded", AttentionSettings("floor", 0.3), requests(seeded=True)),
        Scene("window", AttentionSettings("mixture", 0.2, window=56, num_sinks=4), requests()),
        Scene("prefix", AttentionSettings(), requests(), tuple(model.encode(LONG * 6))),
    )
