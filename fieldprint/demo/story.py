"""The story of the demo, step by step; each step prints what it did and what came out."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fieldprint.adapters.transformers import LoadedModel
from fieldprint.anchor import (
    KINDS,
    AnchorArtifact,
    Envelope,
    KindRule,
    Policy,
    load_private_key,
    load_public_key,
    new_key,
    sign_anchor,
    sign_registration,
    sign_revocation,
)
from fieldprint.demo.recall import ANCHOR_TEXT, CONTROL_TEXT, WINDOW, long_text, measure_recall
from fieldprint.demo.report import write_report
from fieldprint.errors import FieldprintError, VerificationError
from fieldprint.generate import (
    AttentionSettings,
    Committed,
    Engine,
    EngineSettings,
    Finished,
    GenerationRequest,
    GenerationResult,
    Provisional,
    RolledBack,
)
from fieldprint.note import NoteSigner
from fieldprint.pipeline import anchor_tokens, fieldprint_of, page_pool, promotion_of, receipt_of, run
from fieldprint.promote import PinnedAnchor, promote_anchor
from fieldprint.registry import Registry, registration_entry, revocation_entry
from fieldprint.tlog import LogReader, LogWriter
from fieldprint.verify import VerifiedAnchor, verify_anchor, verify_receipt

ORIGIN = "fieldprint.local/demo"
FILLER_TOKENS = 1400
NEW_TOKENS = 80
MARKER = ".fieldprint-demo"  # a folder with this file may be replaced
SETTINGS = EngineSettings(commit_interval=16)
AUDIT = """
import json, sys
from datetime import UTC, datetime
from pathlib import Path
from fieldprint.anchor import Policy
from fieldprint.verify import verify_receipt
policy = Policy.from_bytes(Path(sys.argv[1]).read_bytes())
texts = [verify_receipt(Path(p).read_bytes(), policy, now=datetime.now(UTC)).text for p in sys.argv[2:]]
print(json.dumps({"texts": texts, "torch": "torch" in sys.modules}))
"""


@dataclass
class Stage:
    """What the steps share: the folder, the model, the keys, and the summary that they fill."""

    out: Path
    model: LoadedModel
    say: Callable[[str], None]
    summary: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)

    def check(self, name: str, holds: bool, what: str) -> None:
        """Record a verdict and print it."""
        self.checks[name] = bool(holds)
        self.say(f"   [{'ok' if holds else 'FAILED'}] {what}")


def run_demo(out: Path, model: LoadedModel, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """The summary of the demo, as written to `out`/summary.json, with `checks`, a map of verdicts.

    Args:
        out: the folder to write; a folder of an earlier demo (it has a file .fieldprint-demo) is replaced, another
            one is refused.
        model: the language model.
        say: prints a line.
    """
    say = say or _say
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise FieldprintError(
            f"{out} is not empty and not of a demo", remedy="Choose another folder with --out"
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARKER).touch()
    started = time.perf_counter()
    stage = Stage(out, model, say)
    policy, signed, control = _sign(stage)
    _tamper(stage, policy, signed)
    now = datetime.now(UTC)
    verified = [
        verify_anchor(s, policy, now=now, registry=None, model=model.digest) for s in (signed, control)
    ]
    _recall(stage, verified)
    with LogWriter(
        out / "log", NoteSigner(ORIGIN, load_private_key(out / "keys/log.key")), create=True
    ) as log:
        log.append([_registration(stage, anchor) for anchor in verified])
        receipts = _generate_with_faults(stage, policy, signed, verified[0], log)
        _audit(stage, policy, receipts)
        _revoke(stage, policy, signed, verified[0], log)
    stage.summary["seconds"] = round(time.perf_counter() - started, 1)
    stage.summary["checks"] = stage.checks
    (out / "summary.json").write_text(json.dumps(stage.summary, indent=1, ensure_ascii=False) + "\n")
    write_report(out / "report.html", stage.summary)
    passed = sum(stage.checks.values())
    say(f"{passed} of {len(stage.checks)} checks hold, {stage.summary['seconds']} s; see {out}/report.html")
    return stage.summary


def _registration(stage: Stage, verified: VerifiedAnchor) -> bytes:
    private = load_private_key(stage.out / "keys/owner.key")
    return registration_entry(sign_registration(verified.artifact, [private]))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _sign(stage: Stage) -> tuple[Policy, bytes, bytes]:
    stage.say(
        "1. Keys, a policy, and two signed anchors: one with eight facts and a rule, one neutral as control"
    )
    for name in ("owner", "log"):
        new_key(stage.out / "keys", name)
    owner = load_public_key(stage.out / "keys/owner.pub").public_bytes_raw()
    signer = NoteSigner(ORIGIN, load_private_key(stage.out / "keys/log.key"))
    rule = KindRule(("owner",), 1, 512, 366, ("untrusted",))
    policy = Policy({"owner": owner}, dict.fromkeys(KINDS, rule), ("owner",), 1, str(signer.verifier_key))
    (stage.out / "policy.toml").write_bytes(policy.to_bytes())
    private = load_private_key(stage.out / "keys/owner.key")
    now = datetime.now(UTC).replace(microsecond=0)
    signed = []
    for name, text in (("facts", ANCHOR_TEXT), ("control", CONTROL_TEXT)):
        fieldprint, record = fieldprint_of(stage.model, text, "chat-system")
        artifact = AnchorArtifact(
            name, "identity", text, now, now + timedelta(days=30), fieldprints=(record,)
        )
        signed.append(sign_anchor(artifact, [private]))
        (stage.out / f"{name}.anchor.json").write_bytes(signed[-1])
        fieldprint.save(stage.out / f"{name}.fieldprint.safetensors")
        stage.say(
            f"   {name}: {record.num_tokens} tokens, fieldprint {record.root[:16]}, anchor {artifact.digest[:16]}"
        )
    return policy, signed[0], signed[1]


def _tamper(stage: Stage, policy: Policy, signed: bytes) -> None:
    stage.say("2. Somebody changes one word of the signed text")
    envelope = Envelope.from_bytes(signed)
    artifact = AnchorArtifact.from_bytes(envelope.payload)
    forged = AnchorArtifact(
        artifact.name,
        artifact.kind,
        artifact.text.replace("Falcon", "Vulture"),
        artifact.not_before,
        artifact.not_after,
        fieldprints=artifact.fieldprints,
    )
    tampered = Envelope(envelope.payload_type, forged.to_bytes(), envelope.signatures).to_bytes()
    refusal = _refusal(lambda: verify_anchor(tampered, policy, now=datetime.now(UTC), registry=None))
    stage.check("tampered_anchor_refused", refusal is not None and refusal.check == 4, str(refusal))


def _recall(stage: Stage, verified: list[VerifiedAnchor]) -> None:
    stage.say(
        f"3. {FILLER_TOKENS} tokens of Python's language reference run over a window of {WINDOW}; eight questions"
    )
    rows = measure_recall(stage.model, verified, long_text(stage.model, FILLER_TOKENS))
    for row in rows:
        stage.say(f"   {row['right']} of {row['of']}  {row['condition']:<44} {row['answers'][0][:30]!r}")
    stage.summary["recall"] = rows
    pinned, evicted = rows[2]["right"], rows[1]["right"]
    stage.check(
        "pinned_anchor_is_remembered",
        pinned > evicted,
        f"pinned {pinned}, evicted {evicted} of {rows[0]['of']}",
    )


def _generate_with_faults(
    stage: Stage, policy: Policy, signed: bytes, verified: VerifiedAnchor, log: LogWriter
) -> list[Path]:
    stage.say(
        "4. Two requests under the pinned anchor, every page committed; then again with two flipped bits"
    )
    model = stage.model
    filler = long_text(model, 600)
    prompts = [
        f"{filler}\n\nWhat is your codename, and where do you live?",
        "Tell me a short story about your pet.",
    ]
    requests = [
        GenerationRequest(
            tuple(model.chat_tokens(p)), NEW_TOKENS, stop_ids=model.stop_ids, salt=bytes(15) + bytes([i])
        )
        for i, p in enumerate(prompts)
    ]
    attention = AttentionSettings("floor", 0.0, WINDOW)
    engine = Engine(
        model.decoder, pool := page_pool(model.decoder, requests, attention, SETTINGS, verified),
        decode=model.decode, model=model.digest, settings=SETTINGS,
    )  # fmt: skip
    pinned = promote_anchor(verified, model.decoder, pool, anchor_tokens(model, verified))
    log.append([promotion_of(pinned, model.digest).to_entry()])
    stage.check("fieldprint_is_the_signed_one", pinned.root == verified.record.root if verified.record else False,
                f"realized again: fieldprint {pinned.root[:16]}, as signed")  # fmt: skip
    masses: list[Tensor] = []
    quiet = _Run(
        stage,
        engine,
        pinned,
        requests,
        attention,
        log,
        lambda layers: masses.append(torch.stack(layers).mean(1)),
    )
    quiet.go({})
    faulty = _Run(stage, engine, pinned, requests, attention, log, None)
    faulty.go({30: faulty.flip_pinned, 70: faulty.flip_context})
    reasons = [event["reason"] for event in faulty.rollbacks]
    stage.check(
        "flip_in_pinned_page_found",
        any("pinned" in r for r in reasons),
        f"pinned page: {faulty.found('pinned')}",
    )
    stage.check(
        "flip_in_context_page_found",
        any("context" in r for r in reasons),
        f"context page: {faulty.found('context')}",
    )
    same = [quiet.results[i].text == faulty.results[i].text for i in range(len(requests))]
    stage.check(
        "text_identical_after_faults", all(same), "the answers are byte-identical to the undisturbed run"
    )
    leaves = [[[p.leaf for p in r.pages] for _, r in sorted(x.results.items())] for x in (quiet, faulty)]
    stage.check(
        "leaves_identical_after_faults", leaves[0] == leaves[1], "so is every leaf, K/V digests included"
    )
    stage.summary["generation"] = {
        "answers": [quiet.results[i].text for i in range(len(requests))],
        "timeline": faulty.timeline,
        "faults": faulty.faults,
        "rollbacks": faulty.rollbacks,
        "anchor_mass": torch.stack(masses).mean(0).tolist(),
        "tokens_per_second": {"undisturbed": quiet.rate, "with faults": faulty.rate},
    }
    stage.say(f"   {quiet.rate:.1f} tokens/s undisturbed, {faulty.rate:.1f} with faults and rollbacks")
    reader = LogReader(log.source, [policy.log_key])
    (stage.out / "receipts").mkdir()
    paths = []
    for index, result in sorted(faulty.results.items()):
        paths.append(stage.out / "receipts" / f"{index}.receipt.json")
        paths[-1].write_bytes(receipt_of(result, reader, signed).to_bytes())
    return paths


class _Run:
    """One generation with a timeline, and with bits flipped at given numbers of generated tokens."""

    def __init__(
        self,
        stage: Stage,
        engine: Engine,
        pinned: PinnedAnchor,
        requests: list[GenerationRequest],
        attention: AttentionSettings,
        log: LogWriter,
        observe: Callable[[list[Tensor]], None] | None,
    ) -> None:
        self.stage, self.engine, self.pinned, self.requests = stage, engine, pinned, requests
        self.attention, self.log, self.observe = attention, log, observe
        self.results: dict[int, GenerationResult] = {}
        self.timeline: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []
        self.rollbacks: list[dict[str, Any]] = []
        self.rate = 0.0

    def go(self, injections: dict[int, Callable[[], str]]) -> None:
        """Generate; call `injections[n]` when the n-th token was generated."""
        started = time.perf_counter()
        state: dict[str, Any] = {
            "generated": 0,
            "provisional": [len(r.prompt) for r in self.requests],
            "committed": [0] * len(self.requests),
        }
        events = self.engine.generate(
            self.requests,
            anchor=self.pinned,
            attention=self.attention,
            log=self.log,
            observe_mass=self.observe,
        )
        for event in events:
            seconds = round(time.perf_counter() - started, 4)
            if isinstance(event, Provisional):
                state["generated"] += 1
                state["provisional"][event.request] = event.position + 1
                inject = injections.get(state["generated"])
                if inject is not None:
                    self.faults.append(
                        {"seconds": seconds, "what": inject(), "generated": state["generated"]}
                    )
            elif isinstance(event, Committed):
                state["committed"][event.request] = event.upto
            elif isinstance(event, RolledBack):
                state["provisional"][event.request] = event.to
                self.rollbacks.append(
                    {"seconds": seconds, "reason": event.reason, "request": event.request, "to": event.to}
                )
            elif isinstance(event, Finished):
                self.results[event.request] = event.result
            self.timeline.append(
                {
                    "seconds": seconds,
                    "provisional": list(state["provisional"]),
                    "committed": list(state["committed"]),
                }
            )
        total = sum(len(result.tokens) for result in self.results.values())
        self.rate = round(total / (time.perf_counter() - started), 2)

    def flip_pinned(self) -> str:
        """Flip a bit of V in the anchor's first page."""
        return self._flip(self.pinned.pages[0], "a pinned page")

    def flip_context(self) -> str:
        """Flip a bit of V in the second request's first page."""
        return self._flip(self.engine.pages_of(1)[0], "a context page of request 1")

    def _flip(self, page: int, what: str) -> str:
        raw = self.engine.pool.storage.view(torch.uint8)
        layer = self.engine.pool.layout.num_layers // 2
        raw[layer, 1, page, 3, 0, 7] ^= 1 << 6
        return f"bit 6 of a byte of V, layer {layer}, in {what}"

    def found(self, kind: str) -> str:
        """When the fault of this kind was put in and when it was found."""
        fault = next((f for f in self.faults if kind in f["what"]), None)
        back = next((r for r in self.rollbacks if kind in r["reason"]), None)
        if fault is None or back is None:
            return "not found"
        return f"flipped at {fault['seconds']:.2f} s, found and rolled back at {back['seconds']:.2f} s"


def _audit(stage: Stage, policy: Policy, receipts: list[Path]) -> None:
    stage.say("5. A stranger checks the receipts in a fresh process, and somebody doctors one")
    command = [sys.executable, "-c", AUDIT, str(stage.out / "policy.toml"), *map(str, receipts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  our own interpreter
    report = json.loads(done.stdout) if done.returncode == 0 else {"torch": True, "error": done.stderr[-500:]}
    holds = done.returncode == 0 and not report["torch"]
    stage.check(
        "receipts_verify_without_torch", holds, f"{len(receipts)} receipts verified, torch not loaded"
    )
    text = receipts[0].read_bytes()
    answer = json.loads(text)["text"]
    doctored = text.replace(json.dumps(answer, ensure_ascii=False)[1:9].encode(), b"Nothing!", 1)
    refusal = _refusal(lambda: verify_receipt(doctored, policy, now=datetime.now(UTC)))
    stage.check("doctored_receipt_refused", doctored != text and refusal is not None, str(refusal))


def _revoke(stage: Stage, policy: Policy, signed: bytes, verified: VerifiedAnchor, log: LogWriter) -> None:
    stage.say("6. The owner revokes the anchor; the next request is refused")
    private = load_private_key(stage.out / "keys/owner.key")
    now = datetime.now(UTC).replace(microsecond=0)
    log.append([revocation_entry(sign_revocation(verified.digest, "the demo is over", now, [private]))])
    reader = LogReader(log.source, [policy.log_key])
    known = verified.digest in Registry.replay(reader.entries(), policy).revoked
    request = GenerationRequest(tuple(stage.model.chat_tokens("Who are you?")), 8)
    refusal = _refusal(
        lambda: run(
            [request], model=stage.model, signed=signed, policy=policy, log=log, now=datetime.now(UTC)
        )
    )
    stage.check("revoked_anchor_refused", known and refusal is not None and refusal.check == 8, str(refusal))
    stage.summary["log_entries"] = log.tree_size


def _refusal(attempt: Callable[[], object]) -> VerificationError | None:
    try:
        attempt()
    except VerificationError as error:
        return error
    return None
