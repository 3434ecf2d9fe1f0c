"""Decode steps of the whole engine on one GPU, in the shape of an 8B model; `python -m benchmarks.engine_gpu`.

Llama-3-8B's sizes with random weights in bf16: times, not texts. Beside the engine stands transformers' `generate` on the
same weights, in eager mode, and the roof: every weight and all K/V read once at the speed of a pure read. A step's time
is that of a whole answer from its first token to its last, the host's work included, divided by its steps.
"""

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import transformers
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.attention_gpu import microseconds, row
from benchmarks.attention_peers import World, pure_read
from benchmarks.decode import Clock
from benchmarks.record import write_results
from fieldprint.adapters.transformers import decoder_from
from fieldprint.anchor import KINDS, AnchorArtifact, KindRule, Policy, sign_anchor
from fieldprint.generate import Engine, Finished, GenerationRequest, Provisional
from fieldprint.kvcache import PagePool
from fieldprint.note import NoteSigner
from fieldprint.promote import Fieldprint, PinnedAnchor, promote_anchor
from fieldprint.tlog import LogWriter
from fieldprint.verify import VerifiedAnchor, verify_anchor

CELLS = ((1, 4096), (8, 4096), (1, 32768))
NEW_TOKENS = 96
NUM_ANCHOR = 128
MODEL = "0" * 64


class Bench:
    """The model twice over the same weights, and an anchor of 128 tokens with codes drawn at random."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        config = transformers.LlamaConfig(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=131072,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        )
        with torch.device("cuda"):
            self.peer: Any = transformers.LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
        self.decoder = decoder_from(self.peer)
        self.weight_bytes = 2 * sum(p.numel() for p in self.peer.parameters()) - 2 * 128256 * 4096
        self.key = Ed25519PrivateKey.generate()
        self.signer = NoteSigner("fieldprint.local/bench", self.key)
        sizes = self.decoder.config
        heads = (sizes.num_kv_heads, sizes.head_dim)
        codes = torch.randint(-127, 128, (sizes.num_layers, 2, NUM_ANCHOR, *heads), dtype=torch.int8)
        exponents = torch.full((sizes.num_layers, 2, *heads), -6, dtype=torch.int8)
        self.fieldprint = Fieldprint(codes, exponents)
        self.tokens = list(range(NUM_ANCHOR))

    def pin(self, pool: PagePool) -> PinnedAnchor:
        """The anchor, signed, verified, and pinned from its file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "anchor.safetensors"
            self.fieldprint.save(path)
            return promote_anchor(self._verified(), self.decoder, pool, self.tokens, fieldprint_file=path)

    def _verified(self) -> VerifiedAnchor:
        record = self.fieldprint.record(model=MODEL, form="raw", token_ids=self.tokens)
        now = datetime.now(UTC).replace(microsecond=0)
        artifact = AnchorArtifact(
            "bench", "identity", "text", now, now + timedelta(days=1), fieldprints=(record,)
        )
        raw = self.key.public_key().public_bytes_raw()
        rules = dict.fromkeys(KINDS, KindRule(("owner",)))
        policy = Policy({"owner": raw}, rules, ("owner",), 1, str(self.signer.verifier_key))
        signed = sign_anchor(artifact, [self.key])
        return verify_anchor(signed, policy, now=now, registry=None, model=MODEL)

    def ours(self, batch: int, context: int, *, anchored: bool, log: LogWriter | None = None) -> float:
        """Milliseconds of a decode step; the graph was captured by an answer before."""
        pages = -(-(context + NEW_TOKENS) // 16) + 2
        pool = PagePool(self.decoder.page_layout(16), batch * pages + NUM_ANCHOR // 16 + 1, device="cuda")
        engine = Engine(self.decoder, pool, decode=lambda ids: str(len(ids)), model=MODEL)
        pinned = self.pin(pool) if anchored else None
        taken = 0.0
        for _ in range(2):
            requests = [GenerationRequest(p, NEW_TOKENS) for p in self.prompts(batch, context)]
            first, seen, finished = 0.0, 0, 0
            for event in engine.generate(requests, anchor=pinned, log=log):
                seen += isinstance(event, Provisional)
                finished += isinstance(event, Finished)
                if seen == batch and not first:
                    torch.cuda.synchronize()
                    first = time.perf_counter()
            taken = time.perf_counter() - first
            if finished != batch:
                raise RuntimeError("a request did not finish")
        return round(1e3 * taken / (NEW_TOKENS - 1), 3)

    def theirs(self, batch: int, context: int) -> float:
        """Milliseconds of a decode step of transformers' `generate`."""
        clock = Clock()
        options = transformers.GenerationConfig(
            max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        self.peer.generation_config = options
        ids = torch.tensor(self.prompts(batch, context), device="cuda")
        with torch.inference_mode():
            self.peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                stopping_criteria=transformers.StoppingCriteriaList([clock]),
            )
        torch.cuda.synchronize()
        return round(1e3 * (clock.times[-1] - clock.times[0]) / (NEW_TOKENS - 1), 3)

    def roof(self, batch: int, context: int) -> float:
        """Milliseconds in which all weights and K/V can be read."""
        sample = World([32768] * 8, 32, 8, 128, 0)
        taken = microseconds({"read": pure_read(sample)})["read"]
        bytes_per_ms = 1e3 * (sample.k.nbytes + sample.v.nbytes) / taken
        kv = 32 * 4 * batch * context * 8 * 128
        return float(round((self.weight_bytes + kv) / bytes_per_ms, 3))

    def prompts(self, batch: int, context: int) -> list[tuple[int, ...]]:
        """Random tokens."""
        draw = torch.Generator().manual_seed(batch)
        return [tuple(row) for row in torch.randint(0, 128256, (batch, context), generator=draw).tolist()]


def main() -> int:
    """0 when every measurement ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file of the results; in benchmarks/results/ unless given")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)  # noqa: T201
        return 2
    bench = Bench()
    rows = []
    for batch, context in CELLS:
        cell = f"8B shape B{batch} L{context // 1024}k A{NUM_ANCHOR}"
        anchored = bench.ours(batch, context, anchored=True)
        bare = bench.ours(batch, context, anchored=False)
        theirs, roof = bench.theirs(batch, context), bench.roof(batch, context)
        beside = {
            "transformers, generate": theirs,
            "ours, no anchor": bare,
            "weights and K/V read once (roof)": roof,
        }
        rows.append(row(cell, "decode step", anchored, beside, theirs, "ms"))
        torch.cuda.empty_cache()
    with (
        tempfile.TemporaryDirectory() as folder,
        LogWriter(Path(folder) / "log", bench.signer, create=True) as log,
    ):
        committed = bench.ours(1, 4096, anchored=True, log=log)
    plain = float(rows[0]["ours"])
    cell = f"8B shape B1 L4k A{NUM_ANCHOR}"
    rows.append(row(cell, "decode step, committed", committed, {"ours, no log": plain}, plain, "ms"))
    write_results(
        "engine_gpu",
        rows,
        device=torch.cuda.get_device_name(),
        command="python -m benchmarks.engine_gpu",
        packages=("torch", "triton", "transformers"),
        path=options.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
