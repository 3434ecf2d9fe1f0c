"""The verification path's gates: signed bytes and a policy in, verified objects out, or the check that failed."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from fieldprint.anchor.artifact import AnchorArtifact, FieldprintRecord, format_time
from fieldprint.anchor.dsse import Envelope, valid_signers
from fieldprint.anchor.policy import Policy
from fieldprint.anchor.sign import PAYLOAD_TYPE
from fieldprint.anchor.statements import Registration
from fieldprint.commit.leaf import Commitment, request_digest, text_digest, tokens_digest
from fieldprint.commit.receipt import Receipt
from fieldprint.errors import FormatError, VerificationError
from fieldprint.registry import RegistryView, Standing, StatusProof, verify_not_revoked
from fieldprint.tlog import Checkpoint, leaf_hash, verify_checkpoint, verify_cosignatures, verify_inclusion


@dataclass(frozen=True, slots=True)
class VerifiedAnchor:
    """An anchor that passed `verify_anchor`, which alone makes one.

    record: its fieldprint under the model that was asked for; None when no model was given.
    """

    artifact: AnchorArtifact
    digest: str
    signers: tuple[str, ...]
    record: FieldprintRecord | None


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """A receipt that passed `verify_receipt`.

    witnesses: names of the policy's witnesses that cosigned its checkpoint, sorted.
    """

    text: str
    prompt_len: int
    num_tokens: int
    num_leaves: int
    origin: str
    tree_size: int
    model: str
    anchor: VerifiedAnchor | None
    witnesses: tuple[str, ...]


def verify_anchor(
    signed: bytes,
    policy: Policy,
    *,
    now: datetime,
    registry: RegistryView | None,
    model: str | None = None,
    before: bool = False,
    status: StatusProof | None = None,
) -> VerifiedAnchor:
    """Return the anchor only if every check below holds.

    1. `signed` is a well-formed DSSE envelope of an in-toto statement.
    2. The payload parses as an artifact, and writing it again gives the same bytes; its subject is its text.
    3. The policy has a rule for the anchor's kind.
    4. As many distinct keys as the rule's threshold, all of them signers of that kind, signed.
    5. The rule forbids none of the taint labels that it names itself, less those that the registry knows as endorsed away.
    6. `now` is within its validity, and its validity is not longer than the rule allows.
    7. Its fieldprints are no longer than the rule allows.
    8. The registry does not know it as revoked.
    9. The registry does not know it as superseded by an anchor of its kind.
    10. If `model` is given: a fieldprint under that model is signed, at the positions that `before` asks for.
    11. The registry knows it as registered, and the registration says of it what it says itself.
    12. The rule forbids none of the labels that it has from its kind, its parents and earlier anchors of its text.
    13. None of its ancestors is revoked.
    14. If the rule names models and `model` is given: it is one of them.
    15. No override of it, of its kind or of everything is in force, neither a bypass nor a freeze.
    16. If the policy asks for status roots and there is no registry: `status` shows that it is not revoked.
    17. A registry that is a database was filled under this policy.

    The anchor is not yet in memory; see `promote_anchor`.

    Args:
        signed: of `sign_anchor`.
        policy: whose signatures count.
        now: the time of the check, with a time zone.
        registry: of `Registry.replay`, or a `RegistryDatabase`; None only where no log is at hand, and then 8, 9, 11 to 13,
            15 and 17 are not checked.
        model: hex digest of the model folder.
        before: for an engine that puts the anchor in front of position 0, like vLLM; ours puts it at 0..A-1.
        status: of `prove_not_revoked`, for a verifier who does not replay the log; with a registry it is not looked at.

    Raises:
        VerificationError: with the number of the check.
    """
    envelope, artifact = _read_artifact(signed)
    rule = policy.kinds.get(artifact.kind)
    if rule is None:
        raise VerificationError(3, f"the policy allows no anchors of kind {artifact.kind}")
    signers = valid_signers(envelope, policy.trusted(rule.signers))
    if len(signers) < rule.threshold:
        raise VerificationError(
            4,
            f"{len(signers)} of {rule.threshold} needed signatures by {', '.join(rule.signers)} are valid",
            remedy="The text was altered, or it was signed by a key that the policy does not name",
        )
    _check_time(artifact, now, rule.max_age_days)
    longest = max((record.num_tokens for record in artifact.fieldprints), default=0)
    if longest > rule.max_tokens:
        raise VerificationError(7, f"the anchor has {longest} tokens, the policy allows {rule.max_tokens}")
    digest = artifact.digest
    standing = None if registry is None else registry.standing(digest, artifact.kind, now)
    if standing is not None:
        _check_policy(standing, policy)
    _check_own_taint(artifact, policy, standing)
    if standing is not None:
        _check_not_replaced(standing)
    record = None if model is None else _record_for(artifact, model, before)
    if standing is not None:
        _check_registered(artifact, policy, standing)
    if model is not None and rule.models and model not in rule.models:
        raise VerificationError(
            14, f"the policy allows no {artifact.kind} anchor with the model {model[:16]}..."
        )
    if standing is not None:
        _check_no_override(standing)
    elif policy.status is not None:
        _check_status(status, policy, digest, now)
    names = tuple(sorted(policy.name_of(signer) for signer in signers))
    return VerifiedAnchor(artifact, digest, names, record)


def _read_artifact(signed: bytes) -> tuple[Envelope, AnchorArtifact]:
    """Checks 1 and 2."""
    try:
        envelope = Envelope.from_bytes(signed)
        if envelope.payload_type != PAYLOAD_TYPE:
            raise FormatError(f"the payload type is {envelope.payload_type[:60]!r}, not {PAYLOAD_TYPE}")
    except FormatError as error:
        raise VerificationError(
            1, error.what, remedy="Get the anchor's file from its signer again"
        ) from error
    try:
        artifact = AnchorArtifact.from_bytes(envelope.payload)
    except FormatError as error:
        raise VerificationError(
            2, error.what, remedy="Get the anchor's file from its signer again"
        ) from error
    return envelope, artifact


def _check_policy(standing: Standing, policy: Policy) -> None:
    """Check 17."""
    if standing.policy is not None and standing.policy != policy.digest:
        raise VerificationError(
            17,
            "the registry database was made with another policy"
            if standing.policy
            else "the registry database has read no log yet",
            remedy="fieldprint registry sync, or rebuild if this is the right policy",
        )


def _check_own_taint(artifact: AnchorArtifact, policy: Policy, standing: Standing | None) -> None:
    """Check 5. Who has no registry knows of no endorsement, and a registry of none of what is not registered."""
    forbidden = set(artifact.taint).intersection(policy.kinds[artifact.kind].forbidden_taint)
    known = (
        "Endorsements are known only with the log" if standing is None else "It counts when it is registered"
    )
    if standing is not None and standing.registration is not None:
        forbidden -= set(standing.registration.taint) - standing.taint
    if forbidden:
        labels = sorted(forbidden)
        raise VerificationError(
            5,
            f"the anchor is tainted: {', '.join(labels)}",
            remedy=f"{policy.endorsing(artifact.digest, labels)}. {known}",
        )


def _check_not_replaced(standing: Standing) -> None:
    """Checks 8 and 9."""
    revocation = standing.revocation
    if revocation is not None:
        raise VerificationError(
            8,
            f"the anchor was revoked at {format_time(revocation.time)}: {revocation.reason}",
            remedy="Sign a new anchor",
        )
    if standing.newer is not None:
        raise VerificationError(
            9,
            f"the anchor was superseded by a newer one, {standing.newer[:16]}...",
            remedy="Use the newer one",
        )


def _record_for(artifact: AnchorArtifact, model: str, before: bool) -> FieldprintRecord:
    """Check 10."""
    record = artifact.record_for(model, before=before)
    if record is not None:
        return record
    place = " in front of position 0" if before else ""
    remedy = "Sign the anchor again with --model of this folder, or use the model that it was signed for"
    if artifact.record_for(model, before=not before) is not None:
        remedy = "Sign it for both: fieldprint anchor sign FILE --engine fieldprint --engine vllm"
    elif before:
        remedy = "Sign it for this model: fieldprint anchor sign FILE --model FOLDER --engine vllm"
    raise VerificationError(
        10, f"no fieldprint{place} is signed for the model {model[:16]}...", remedy=remedy
    )


def _check_registered(artifact: AnchorArtifact, policy: Policy, standing: Standing) -> None:
    """Checks 11 to 13."""
    try:
        expected = Registration.of(artifact)
    except FormatError as error:
        raise VerificationError(11, error.what, remedy="Sign a new anchor") from error
    if standing.registration != expected:
        unknown = standing.registration is None
        raise VerificationError(
            11,
            "the anchor is not registered in the log"
            if unknown
            else "its registration in the log says something else than the anchor",
            remedy="fieldprint anchor register FILE" if unknown else "Revoke it, and sign a new one",
        )
    forbidden = sorted(standing.taint.intersection(policy.kinds[artifact.kind].forbidden_taint))
    if forbidden:
        raise VerificationError(
            12,
            f"the anchor is tainted by what it comes from: {', '.join(forbidden)}",
            remedy=policy.endorsing(artifact.digest, forbidden),
        )
    if standing.revoked_ancestor is not None:
        raise VerificationError(
            13,
            f"the anchor comes from {standing.revoked_ancestor[:16]}..., which is revoked",
            remedy="Sign a new anchor that does not",
        )


def _check_no_override(standing: Standing) -> None:
    """Check 15."""
    override = standing.override
    if override is not None:
        raise VerificationError(
            15,
            f"override {override.number} ({override.action} {override.scope} {override.target[:16]}) is in force: "
            f"{override.reason}",
            remedy="Whoever may override can lift it",
        )


def _check_status(status: StatusProof | None, policy: Policy, digest: str, now: datetime) -> None:
    """Check 16."""
    if status is None:
        raise VerificationError(
            16,
            "the policy asks for a status root, and none is given",
            remedy="Give a status proof, or the log",
        )
    try:
        verify_not_revoked(status, policy, digest, now)
    except VerificationError as error:
        raise VerificationError(16, error.what, remedy=error.remedy) from error


def _check_time(artifact: AnchorArtifact, now: datetime, max_age_days: int) -> None:
    if now.utcoffset() is None:
        raise ValueError("now must have a time zone")
    if now < artifact.not_before:
        raise VerificationError(6, f"the anchor is valid from {format_time(artifact.not_before)} on")
    if now >= artifact.not_after:
        raise VerificationError(
            6, f"the anchor expired at {format_time(artifact.not_after)}", remedy="Sign it again"
        )
    if artifact.not_after - artifact.not_before > timedelta(days=max_age_days):
        raise VerificationError(
            6, f"the anchor is valid for longer than the {max_age_days} days of the policy"
        )


def verify_receipt(
    data: bytes,
    policy: Policy,
    *,
    now: datetime,
    registry: RegistryView | None = None,
    status: StatusProof | None = None,
) -> VerifiedReceipt:
    """Return what the receipt says only if every check below holds. Needs no model and no network.

    1. `data` is a well-formed receipt in canonical bytes.
    2. The policy's log key signed its checkpoint, and the checkpoint is of that log.
    3. Every leaf is in the checkpoint's tree, at its index.
    4. The leaves parse and are one chain: pages from 0 on, each naming the leaf before, same request, model, anchor,
       sampler and attention; they cover prompt and answer exactly; the last one, and only it, ends the answer.
    5. Prompt and tokens open the leaves' digests.
    6. The text opens the last leaf's digest.
    7. The anchor in the receipt passes `verify_anchor` for the leaves' model; its digest and fieldprint are the leaves'.
    8. As many witnesses as the policy's minimum cosigned the checkpoint, and no cosignature by one of them is false.

    Args:
        data: the receipt's file.
        policy: of the verifier, never of the receipt.
        now: the time of the check.
        registry: where revocation is looked up; None leaves it out.
        status: as in `verify_anchor`.

    Raises:
        VerificationError: with the number of the check.
    """
    try:
        receipt = Receipt.from_bytes(data)
    except FormatError as error:
        raise VerificationError(1, error.what, remedy=error.remedy) from error
    checkpoint = _verified_checkpoint(receipt, policy)
    for item in receipt.leaves:
        try:
            verify_inclusion(
                leaf_hash(item.leaf), item.index, checkpoint.tree_size, item.proof, checkpoint.root_hash
            )
        except VerificationError as error:
            raise VerificationError(3, f"leaf {item.index}: {error.what}") from error
    chain = _verified_chain(receipt)
    whole = receipt.prompt + receipt.tokens
    if request_digest(receipt.salt, receipt.prompt) != chain[0].request:
        raise VerificationError(5, "the prompt is not the one that was committed")
    for leaf in chain:
        if tokens_digest(receipt.salt, leaf.start, whole[leaf.start : leaf.end]) != leaf.tokens:
            raise VerificationError(5, f"the tokens of page {leaf.page} are not those that were committed")
    if text_digest(receipt.salt, receipt.text) != chain[-1].text:
        raise VerificationError(6, "the text is not the one that was committed")
    anchor = _verified_receipt_anchor(receipt, chain[0], policy, now, registry, status)
    try:
        cosignatures = verify_cosignatures(receipt.checkpoint.encode(), policy)
    except (FormatError, VerificationError) as error:
        raise VerificationError(8, error.what, remedy=error.remedy) from error
    return VerifiedReceipt(
        text=receipt.text,
        prompt_len=len(receipt.prompt),
        num_tokens=len(receipt.tokens),
        num_leaves=len(chain),
        origin=checkpoint.origin,
        tree_size=checkpoint.tree_size,
        model=chain[0].model,
        anchor=anchor,
        witnesses=tuple(sorted({signature.key.name for signature in cosignatures})),
    )


def _verified_checkpoint(receipt: Receipt, policy: Policy) -> Checkpoint:
    try:
        return verify_checkpoint(receipt.checkpoint.encode(), policy.log_keys)
    except (FormatError, VerificationError) as error:
        raise VerificationError(2, error.what, remedy="Is the policy's log key the right one?") from error


def _verified_chain(receipt: Receipt) -> list[Commitment]:
    """Check 4."""
    chain: list[Commitment] = []
    total = len(receipt.prompt) + len(receipt.tokens)
    for number, item in enumerate(receipt.leaves):
        try:
            leaf = Commitment.from_bytes(item.leaf)
        except FormatError as error:
            raise VerificationError(4, f"leaf {item.index}: {error.what}") from error
        before = chain[-1] if chain else None
        previous = leaf_hash(receipt.leaves[number - 1].leaf).hex() if before else None
        start = before.end if before else 0
        if (leaf.page, leaf.start, leaf.previous) != (number, start, previous):
            raise VerificationError(4, f"leaf {item.index} does not follow the leaf before it")
        if before is not None and _terms(before) != _terms(leaf):
            raise VerificationError(4, f"leaf {item.index} is of another request, model, anchor or setting")
        if (leaf.text is not None) != (number == len(receipt.leaves) - 1):
            raise VerificationError(4, "the answer does not end with the last leaf, or ends before it")
        chain.append(leaf)
    if chain[-1].end != total or chain[0].prompt_len != len(receipt.prompt):
        raise VerificationError(4, "the leaves do not cover the prompt and the answer exactly")
    return chain


def _terms(leaf: Commitment) -> tuple[object, ...]:
    return (
        leaf.request,
        leaf.prompt_len,
        leaf.model,
        leaf.anchor,
        leaf.fieldprint,
        leaf.sampler,
        leaf.attention,
    )


def _verified_receipt_anchor(
    receipt: Receipt,
    leaf: Commitment,
    policy: Policy,
    now: datetime,
    registry: RegistryView | None,
    status: StatusProof | None,
) -> VerifiedAnchor | None:
    """Check 7."""
    if receipt.anchor is None:
        if leaf.anchor is not None or leaf.fieldprint is not None:
            raise VerificationError(7, "the leaves name an anchor, and the receipt does not hold it")
        return None
    try:
        before = _lies_before(receipt.anchor, leaf)
        anchor = verify_anchor(
            receipt.anchor, policy, now=now, registry=registry, model=leaf.model, before=before, status=status
        )
    except VerificationError as error:
        raise VerificationError(7, f"the anchor: {error.what}", remedy=error.remedy) from error
    if anchor.digest != leaf.anchor or anchor.record is None or anchor.record.root != leaf.fieldprint:
        raise VerificationError(7, "the leaves name another anchor or another fieldprint")
    return anchor


def _lies_before(signed: bytes, leaf: Commitment) -> bool:
    """Whether the leaf's fieldprint is the one in front of position 0, as vLLM has it."""
    record = _read_artifact(signed)[1].record_for(leaf.model, before=True)
    return record is not None and record.root == leaf.fieldprint
