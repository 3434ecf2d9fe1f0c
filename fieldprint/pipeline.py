"""The data path in one function: read this file first.

    text -> anchor/ -> verify -> promote -> kvcache/ -> attention/ -> generate -> commit -> tlog/

`run` takes a signed anchor and requests, and gives back answers with receipts. Each step is one call of the stage that
is named for it.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from fieldprint.anchor import AnchorArtifact, Envelope, FieldprintRecord, Policy
from fieldprint.anchor.artifact import BEFORE, BLOCK, FORMS
from fieldprint.commit import LeafProof, Receipt
from fieldprint.decoder import Decoder
from fieldprint.errors import FormatError, ModelError, VerificationError
from fieldprint.generate import (
    AttentionSettings,
    Bypassed,
    Engine,
    EngineSettings,
    Event,
    Finished,
    GenerationRequest,
    GenerationResult,
)
from fieldprint.generate.gate import without_anchor
from fieldprint.kvcache import PagePool
from fieldprint.promote import Fieldprint, PinnedAnchor, compute_fieldprint, promote_anchor
from fieldprint.registry import Promotion, Registry
from fieldprint.registry.gate import GRACE, AnchorGate, GatedAnchor, Unwatched, Watched
from fieldprint.registry.orders import OrdersFile, Recorded, record_orders
from fieldprint.tlog import LogReader, LogWriter
from fieldprint.verify import VerifiedAnchor, verify_anchor


class Model(Protocol):
    """What the pipeline needs of a language model; `adapters.transformers.LoadedModel` is one."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the model folder's manifest."""

    @property
    def decoder(self) -> Decoder:
        """The network."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` alone."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""

    def system_tokens(self, text: str) -> list[int]:
        """Token ids of a system message."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished request and its receipt; `before` is what was generated under an anchor that had to be left."""

    result: GenerationResult
    receipt: Receipt
    before: "Answer | None" = None


def run(
    requests: Sequence[GenerationRequest],
    *,
    model: Model,
    signed: bytes | None,
    policy: Policy,
    log: LogWriter,
    now: datetime,
    attention: AttentionSettings | None = None,
    settings: EngineSettings | None = None,
    fieldprint_file: Path | None = None,
    device: str = "cpu",
    on_event: Callable[[Event], None] | None = None,
    interrupt: threading.Event | None = None,
    name: str = "engine",
    registry: Watched | None = None,
    orders: OrdersFile | None = None,
    on_refused: Callable[[str], None] | None = None,
    grace: float = GRACE,
) -> list[Answer]:
    """Answers to `requests`, generated under the signed anchor, every page committed to `log`.

    At every step boundary the orders and the registry are asked whether it may go on (`registry.gate.AnchorGate`). Orders of the file
    that the log does not know are appended to it.

    Args:
        requests: the batch.
        model: what generates.
        signed: the signed anchor, or None to generate without one.
        policy: whose signatures count.
        log: an open log; its key is the policy's.
        now: the time of the checks.
        attention: operator, floor, window, sinks.
        settings: page size, provisional cap and the like.
        fieldprint_file: to load the anchor's K/V instead of recomputing them.
        device: where to generate; `model` is on the CPU, where the anchor is realized, and is copied there.
        on_event: called with each event as it happens.
        interrupt: when set, every request ends at its next token; what it has is committed.
        name: of this engine, for orders of the scope `engine`.
        registry: watched for revocations and overrides while generating, besides the log at the beginning.
        orders: a file of overrides and lifts, or None.
        on_refused: called with each order of the file that the log does not believe, in words; it holds here all the same.
        grace: seconds for which it goes on while the watched registry cannot be reached.

    Raises:
        VerificationError: the anchor is not what the policy asks for, or the gate rules that nothing is generated (check 15).
        LogError, CapacityError, IntegrityError: as `Engine.generate`; committed tokens stay committed.
    """
    settings = settings or EngineSettings()
    attention = attention or AttentionSettings()
    reader = LogReader(log.source, [policy.log_key])
    recorded = _recorded(orders, log, policy, on_refused)
    known = Registry.replay(reader.entries(), policy) if recorded is None else recorded.registry
    artifact, verified, left = _admitted(signed, policy, now, known, model.digest)
    gate = gate_of(
        policy, artifact, name=name, registry=registry or Unwatched(known), orders=orders, grace=grace
    )
    verified = _let_in(gate, verified, left, requests, on_event)
    pool = page_pool(model.decoder, requests, attention, settings, verified, device=device)
    pinned = None
    if verified is not None:
        pinned = promote_anchor(
            verified, model.decoder, pool, anchor_tokens(model, verified), fieldprint_file=fieldprint_file
        )
        log.append([promotion_of(pinned, model.digest).to_entry()])
    decoder = model.decoder.to(device)
    engine = Engine(decoder, pool, decode=model.decode, model=model.digest, settings=settings)
    results: dict[int, GenerationResult] = {}
    # Closed before the caller can close the log, whatever happens here: the committer may still be at work.
    if pinned is None and signed is not None:
        attention = without_anchor(attention)
    with closing(engine.generate(requests, anchor=pinned, attention=attention, log=log, gate=gate)) as events:
        for event in events:
            if interrupt is not None and interrupt.is_set():
                engine.stop()
            if isinstance(event, Finished):
                results[event.request] = event.result
            if on_event is not None:
                on_event(event)
    if orders is not None and orders.broken is None and _ordered(results.values()):
        _recorded(orders, log, policy, on_refused, recorded)  # what came while it was generating
    reader.refresh()
    used = None if pinned is None else signed
    return [answer_of(results[i], reader, used) for i in range(len(requests))]


def _recorded(
    orders: OrdersFile | None,
    log: LogWriter,
    policy: Policy,
    on_refused: Callable[[str], None] | None,
    before: Recorded | None = None,
) -> Recorded | None:
    """What became of the file's orders in the log; what it refused and was not told `before` is told."""
    if orders is None:
        return None
    recorded = record_orders(orders, log, policy)
    if on_refused is not None:
        for why in recorded.refused[0 if before is None else len(before.refused) :]:
            on_refused(why)
    return recorded


def _admitted(
    signed: bytes | None, policy: Policy, now: datetime, registry: Registry, model: str
) -> tuple[AnchorArtifact | None, VerifiedAnchor | None, str]:
    """What is to be used, and that verified; or not, and why, where all that speaks against it is an order to bypass it."""
    if signed is None:
        return None, None, ""
    try:
        verified = verify_anchor(signed, policy, now=now, registry=registry, model=model)
        return verified.artifact, verified, ""
    except VerificationError as error:
        if error.check != 15:
            raise
        artifact = AnchorArtifact.from_bytes(Envelope.from_bytes(signed).payload)
        order = registry.override_on(now, anchor=artifact.digest, kind=artifact.kind)
        if order is None or order.action != "bypass":
            raise
        return artifact, None, error.what


def _let_in(
    gate: AnchorGate,
    verified: VerifiedAnchor | None,
    left: str | None,
    requests: Sequence[GenerationRequest],
    on_event: Callable[[Event], None] | None,
) -> VerifiedAnchor | None:
    """The anchor that the gate lets in at the beginning; `left` is why it was left already.

    Raises:
        VerificationError: the gate rules that nothing is generated; check 15.
    """
    ruling = gate.ruling()
    if ruling is not None and ruling.action == "stop":
        remedy = "Whoever may override can lift it" if ruling.reason == "frozen" else ""
        raise VerificationError(15, ruling.why, remedy=remedy)
    why = left if ruling is None else ruling.why
    if not why:
        return verified
    _tell_bypassed(requests, why, on_event)
    return None


def _ordered(results: Iterable[GenerationResult]) -> bool:
    """Whether an order ended one of them, or the part before it."""
    parts = [part for result in results for part in (result, result.before) if part is not None]
    return any(part.reason in ("frozen", "bypassed") for part in parts)


def _tell_bypassed(
    requests: Sequence[GenerationRequest], why: str, on_event: Callable[[Event], None] | None
) -> None:
    for index, request in enumerate(requests):
        if on_event is not None:
            on_event(Bypassed(index, len(request.prompt), why))


def gate_of(
    policy: Policy,
    artifact: AnchorArtifact | None,
    *,
    name: str,
    registry: Watched | None,
    orders: OrdersFile | None,
    grace: float = GRACE,
) -> AnchorGate:
    """The gate of an engine that uses this anchor, or none; one that is bypassed can still be frozen."""
    used = None
    if artifact is not None:
        used = GatedAnchor(artifact.digest, artifact.kind, artifact.not_after)
    return AnchorGate(policy, used, engine=name, registry=registry, orders=orders, grace=grace)


def answer_of(result: GenerationResult, reader: LogReader, signed: bytes | None) -> Answer:
    """The answer with its receipt; one that went on without its anchor has another of what came before."""
    if result.before is None:
        return Answer(result, receipt_of(result, reader, signed))
    return Answer(
        result,
        receipt_of(result, reader, None),
        Answer(result.before, receipt_of(result.before, reader, signed)),
    )


def anchor_tokens(model: Model, verified: VerifiedAnchor) -> list[int]:
    """The anchor's tokens in the form that its fieldprint was signed for."""
    form = "raw" if verified.record is None else verified.record.form
    return text_tokens(model, verified.artifact.text, form)


def text_tokens(model: Model, text: str, form: str) -> list[int]:
    """Token ids of an anchor's text: as a system message ("chat-system") or as it is ("raw").

    "-before" behind the form puts filler in front, the first token of a newline, until a multiple of 32 tokens is full.

    Raises:
        FormatError: another form. ModelError: the model has no such template, or no token for a newline.
    """
    if form not in FORMS:
        raise FormatError(f"the form {form[:40]!r} is not known", remedy=f"Use one of {', '.join(FORMS)}")
    tokens = model.system_tokens(text) if form.startswith("chat-system") else model.encode(text)
    missing = -len(tokens) % BLOCK if form.endswith(BEFORE) else 0
    if not missing:
        return tokens
    newline = model.encode("\n")
    if not newline:
        raise ModelError(
            "the model's tokenizer has no token for a newline, with which an anchor is filled up"
        )
    return newline[:1] * missing + tokens


def fieldprint_of(model: Model, text: str, form: str) -> tuple[Fieldprint, FieldprintRecord]:
    """The fieldprint of a text, and the record of it that its signer puts into the artifact."""
    tokens = text_tokens(model, text, form)
    first = -len(tokens) if form.endswith(BEFORE) else 0
    fieldprint = compute_fieldprint(model.decoder, tokens, first_position=first)
    return fieldprint, fieldprint.record(model=model.digest, form=form, token_ids=tokens)


def promotion_of(pinned: PinnedAnchor, model: str) -> Promotion:
    """The log's event of a promotion."""
    verified = pinned.verified
    artifact = verified.artifact
    return Promotion(verified.digest, pinned.root, model, artifact.kind, artifact.supersedes)


def page_pool(
    decoder: Decoder,
    requests: Sequence[GenerationRequest],
    attention: AttentionSettings,
    settings: EngineSettings,
    verified: VerifiedAnchor | None,
    *,
    device: str = "cpu",
) -> PagePool:
    """A pool for the batch, the anchor, and the twin of a request that is being rebuilt."""
    size = settings.page_size
    resident = []
    for request in requests:
        prefix = 0 if request.prefix is None else len(request.prefix.tokens)
        positions = prefix + len(request.prompt) + request.max_new_tokens
        if attention.window is not None:
            positions = min(
                positions, attention.window + 4 * settings.chunk_size + 2 * settings.provisional_cap
            )
        resident.append(-(-positions // size) + 2)
    anchor = 0 if verified is None or verified.record is None else -(-verified.record.num_tokens // size)
    pages = sum(resident) + max(resident) + anchor + 2
    return PagePool(decoder.page_layout(size), pages, device=device)


def receipt_of(result: GenerationResult, reader: LogReader, signed: bytes | None) -> Receipt:
    """The receipt of a committed result, with proofs to the reader's checkpoint."""
    leaves = tuple(
        LeafProof(page.leaf_index, page.leaf, tuple(reader.inclusion_proof(page.leaf_index)))
        for page in result.pages
    )
    return Receipt(
        reader.signed_checkpoint().decode(),
        leaves,
        result.salt,
        result.prompt,
        result.tokens,
        result.text,
        signed,
    )
