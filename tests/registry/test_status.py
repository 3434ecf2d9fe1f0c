"""Status proofs: that an anchor is not revoked, for a verifier without the log; each numbered check fails where it should."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fieldprint.anchor import AnchorArtifact, Policy, Registration, StatusRoot, sign_anchor
from fieldprint.errors import FormatError, VerificationError
from fieldprint.note import NoteSigner
from fieldprint.registry import Registry, StatusProof, append_event, prove_not_revoked, verify_not_revoked
from fieldprint.tlog import LogReader, LogWriter
from fieldprint.verify import verify_anchor
from tests.registry.world import (
    CLERK,
    DAY,
    LOG,
    OWNER,
    POLICY,
    READER,
    TIME,
    anchor,
    entry,
    override,
    revoke,
    sign,
    status,
)

NOW = TIME + timedelta(seconds=30)
ARTIFACT = AnchorArtifact("note", "memory", "Oslo is cold.", TIME, TIME + DAY)
NOTE, GONE = Registration.of(ARTIFACT), anchor("gone")
SIGNER = NoteSigner(POLICY.log_key.name, LOG)


class Story:
    """A log with a registered anchor, a revoked one, and a status root."""

    def __init__(self, folder: Path, policy: Policy = POLICY) -> None:
        self.policy = policy
        with LogWriter(folder / "log", SIGNER, create=True) as log:
            for made in (sign(NOTE), sign(GONE), revoke(GONE)):
                append_event(log, policy, made)
            append_event(log, policy, status(self.registry(folder)))
        self.folder = folder
        self.proof = prove_not_revoked(self.registry(folder), self.reader(folder), NOTE.anchor)

    def reader(self, folder: Path) -> LogReader:
        return LogReader(folder / "log", [self.policy.log_key])

    def registry(self, folder: Path) -> Registry:
        return Registry.replay(self.reader(folder).entries(), self.policy)

    def append(self, *entries: bytes) -> None:
        with LogWriter(self.folder / "log", SIGNER) as log:
            log.append(list(entries))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(tmp_path_factory.mktemp("status"))


def refused(proof: StatusProof, policy: Policy = POLICY, digest: str = NOTE.anchor, now: Any = NOW) -> int:
    with pytest.raises(VerificationError) as caught:
        verify_not_revoked(proof, policy, digest, now)
    return caught.value.check


def test_a_fresh_proof_is_verified_and_round_trips(story: Story) -> None:
    root = verify_not_revoked(story.proof, POLICY, NOTE.anchor, NOW)
    assert (root.count, root.size) == (1, 3)
    assert StatusProof.from_bytes(story.proof.to_bytes()) == story.proof
    for broken in (
        b"",
        b"{}",
        story.proof.to_bytes() + b"\n",
        story.proof.to_bytes().replace(b'"v":1', b'"v":2'),
    ):
        with pytest.raises(FormatError):
            StatusProof.from_bytes(broken)


def test_verify_anchor_asks_for_one_where_the_policy_has_status_roots(story: Story) -> None:
    signed = sign_anchor(ARTIFACT, [OWNER])

    def checked(**given: Any) -> int:
        with pytest.raises(VerificationError) as caught:
            verify_anchor(signed, POLICY, **({"now": NOW, "registry": None} | given))
        return caught.value.check

    assert verify_anchor(signed, POLICY, now=NOW, registry=None, status=story.proof).digest == NOTE.anchor
    assert verify_anchor(signed, POLICY, now=NOW, registry=story.registry(story.folder)).digest == NOTE.anchor
    assert verify_anchor(signed, replace(POLICY, status=None), now=NOW, registry=None).digest == NOTE.anchor
    assert checked() == 16
    assert checked(status=story.proof, now=NOW + timedelta(hours=1)) == 16
    assert checked(status=replace(story.proof, absence=replace(story.proof.absence, tree=bytes(32)))) == 16


def test_1_another_log_or_too_few_witnesses(story: Story) -> None:
    assert refused(story.proof, replace(POLICY, log=str(NoteSigner("other/log", LOG).verifier_key))) == 1
    bent = replace(story.proof.root, index=story.proof.root.index - 1)
    assert refused(replace(story.proof, root=bent)) == 1
    assert refused(replace(story.proof, root=replace(story.proof.root, extra=None))) == 1


def test_2_what_is_no_status_root_of_the_policy_s_signers(story: Story, tmp_path: Path) -> None:
    from fieldprint.tlog.proof import prove_entry

    assert refused(story.proof, replace(POLICY, status=None)) == 2
    elsewhere = Story(tmp_path)
    registry = elsewhere.registry(tmp_path)
    elsewhere.append(
        status(registry, keys=(OWNER,)),
        status(registry, size=99),
        b'{"envelope":"e30=","type":"status","v":1}',
    )
    for index in (0, 4, 5, 6):
        root = prove_entry(elsewhere.reader(tmp_path), index, with_entry=True)
        assert refused(replace(elsewhere.proof, root=root)) == 2


@pytest.mark.parametrize(
    ("seconds", "longest", "holds"),
    [
        (0, 3600, True),
        (600, 3600, True),
        (601, 3600, False),
        (60, 60, True),
        (61, 60, False),
        (-60, 3600, True),
        (-61, 3600, False),
        (86400 * 365, 3600, False),
    ],
)
def test_3_a_root_that_is_too_old_or_from_the_future(
    story: Story, seconds: int, longest: int, holds: bool
) -> None:
    """It allows 600 seconds itself; the shorter of the two counts."""
    assert POLICY.status is not None
    policy = replace(POLICY, status=replace(POLICY.status, max_age_seconds=longest))
    now = TIME + timedelta(seconds=seconds)
    if holds:
        verify_not_revoked(story.proof, policy, NOTE.anchor, now)
    else:
        assert refused(story.proof, policy, now=now) == 3


def test_4_a_proof_for_another_anchor_or_for_a_revoked_one(story: Story) -> None:
    assert refused(story.proof, digest=GONE.anchor) == 4
    bent = replace(story.proof.absence, tree=bytes(32))
    assert refused(replace(story.proof, absence=bent)) == 4


def test_no_proof_is_made_of_what_is_not_so(tmp_path: Path) -> None:
    story = Story(tmp_path)

    def check(digest: str) -> int:
        with pytest.raises(VerificationError) as caught:
            prove_not_revoked(story.registry(tmp_path), story.reader(tmp_path), digest)
        return caught.value.check

    with pytest.raises(VerificationError, match="no status root"):
        prove_not_revoked(Registry(POLICY), story.reader(tmp_path), NOTE.anchor)
    assert check(GONE.anchor) == 2
    story.append(revoke(anchor("more")))
    assert check(NOTE.anchor) == 3
    story.append(status(story.registry(tmp_path)))
    fresh = prove_not_revoked(story.registry(tmp_path), story.reader(tmp_path), NOTE.anchor)
    verify_not_revoked(fresh, POLICY, NOTE.anchor, NOW)


def test_a_root_signed_over_a_false_set_is_refused_by_whoever_replays(tmp_path: Path) -> None:
    story = Story(tmp_path)
    registry = story.registry(tmp_path)
    false = StatusRoot("00" * 32, 1, registry.position, TIME, 600)
    assert registry.apply(registry.position, entry("status", false, CLERK)) is None
    assert registry.refused[-1].why == "root"


def test_an_event_is_appended_only_if_it_is_believed(tmp_path: Path) -> None:
    from fieldprint.registry import EventError

    story = Story(tmp_path)
    with LogWriter(tmp_path / "log", SIGNER) as log:
        size = log.tree_size
        for refused_entry, why in (
            (sign(NOTE), "already-registered"),
            (sign(anchor("x"), CLERK), "signatures"),
            (override(1, keys=(READER,)), "signatures"),
            (b"text", "malformed"),
        ):
            with pytest.raises(EventError) as caught:
                append_event(log, POLICY, refused_entry)
            assert caught.value.why == why and log.tree_size == size
        assert append_event(log, POLICY, override(1)) == size
    assert list(story.registry(tmp_path).overrides) == [1]
