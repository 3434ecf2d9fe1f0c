"""The audit of entries and its state file: against a slow twin, over interruptions, and with a state that was damaged."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

import fieldprint.audit
from fieldprint.anchor import (
    KindRule,
    Override,
    SignerRule,
    sign_registration,
    sign_revocation,
    sign_statement,
)
from fieldprint.audit import Audit, AuditState, EntryCheck, load_state, save_state
from fieldprint.commit import AbortEntry, Commitment
from fieldprint.errors import FieldprintError, FormatError, LogError
from fieldprint.note import NoteSigner
from fieldprint.registry import Promotion, Registry, event_entry, registration_entry, revocation_entry
from fieldprint.tlog import LogWriter, leaf_hash, open_source
from fieldprint.tlog.audit import Audited, AuditError
from tests.signing import make_policy
from tests.vectors.log.make_log_vectors import leaf
from tests.vectors.make_vectors import ANCHOR, NOW

OWNER, LOG, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2, 3))
WARDEN = Ed25519PrivateKey.from_private_bytes(bytes([4]) * 32)
PLAIN = make_policy(OWNER, LOG)
POLICY = replace(
    PLAIN,
    keys={**PLAIN.keys, "warden": WARDEN.public_key().public_bytes_raw()},
    override=SignerRule(("warden",)),
)
SIGNER = NoteSigner(POLICY.log_key.name, LOG)
REQUESTS = [f"{i:064x}" for i in range(3)]


def chain(request: str, pages: int, *, end: bool = True) -> list[bytes]:
    made: list[bytes] = []
    for page in range(pages):
        made.append(leaf(page, made[-1] if made else None, last=end and page == pages - 1, request=request))
    return made


def story(size: int = 700) -> list[bytes]:
    """Registrations, promotions, revocations, overrides, three requests at a time, aborts, and entries of others; nothing is wrong.

    An abort takes a request back by up to two pages: the log holds their leaves twice.
    """
    chance, entries, open_chains = random.Random(4), [], [chain(name, 9) for name in REQUESTS]
    done: list[list[bytes]] = [[], [], []]
    number = len(REQUESTS)
    while len(entries) < size:
        kind = chance.randrange(9)
        if kind == 8:
            made = Override("freeze", "all", "*", 1 + len(entries), "an alarm", NOW)
            artifact = replace(ANCHOR, name=f"a{len(entries)}")
            entries.append(
                chance.choice(
                    [
                        registration_entry(sign_registration(artifact, [OWNER])),
                        event_entry("override", sign_statement(made, [WARDEN])),
                    ]
                )
            )
        elif kind == 0:
            entries.append(Promotion("aa" * 32, "bb" * 32, "cc" * 32, "identity").to_entry())
        elif kind == 1:
            entries.append(revocation_entry(sign_revocation(f"{len(entries):064x}", "lost", NOW, [OWNER])))
        elif kind == 2:
            which = chance.randrange(3)
            for _ in range(chance.randrange(3)):
                if done[which]:
                    open_chains[which].insert(0, done[which].pop())
            following = Commitment.from_bytes(open_chains[which][0])
            entries.append(
                AbortEntry(following.request, following.page, "damaged context pages [0]").to_bytes()
            )
        elif kind == 3:
            entries.append(chance.randbytes(20))
        else:
            which = chance.randrange(3)
            row = open_chains[which]
            done[which].append(row.pop(0))
            entries.append(done[which][-1])
            if not row:
                done[which].clear()
                row.extend(chain(f"{number:064x}", chance.randrange(1, 12)))
                number += 1
    return entries


def naive_expected(request: str, earlier: list[bytes]) -> tuple[int, int | None, str | None]:
    """Page, position and previous leaf of a request's next leaf; no position where an abort took it back."""
    expected: tuple[int, int | None, str | None] = (0, 0, None)
    for entry in earlier:
        try:
            event = json.loads(entry)
            if event["request"] != request:
                continue
            if event["type"] == "abort":
                AbortEntry.from_fields(event)
                if event["page"] != expected[0]:
                    expected = (event["page"], None, None)
            else:
                before = Commitment.from_bytes(entry)
                ended = before.text is not None
                expected = (0, 0, None) if ended else (before.page + 1, before.end, leaf_hash(entry).hex())
        except (FormatError, ValueError, KeyError, TypeError):
            continue
        if expected[0] == 0:
            expected = (0, 0, None)
    return expected


def naive_findings(entries: list[bytes]) -> list[int]:
    """The slow twin: for each entry by itself, whether it is what its type promises; chains by looking back."""
    bad = []
    for index, entry in enumerate(entries):
        try:
            fields = json.loads(entry)
            if rfc8785.dumps(fields) != entry:
                continue
        except Exception:
            continue
        kind = fields.get("type") if isinstance(fields, dict) else None
        try:
            if kind == "promote":
                (refused,) = Registry.replay([entry], POLICY).refused or [None]
                if refused is None or refused.why != "unknown-anchor":  # well formed, and of no anchor here
                    raise FormatError("no")
            elif kind in ("sign", "override"):
                if Registry.replay([entry], POLICY).believed[kind] != 1:
                    raise FormatError("no")
            elif kind == "revoke":
                if len(Registry.replay([entry], POLICY).revoked) != 1:
                    raise FormatError("no")
            elif kind == "abort":
                if AbortEntry(fields["request"], fields["page"], fields["reason"]).to_bytes() != entry:
                    raise FormatError("no")
            elif kind == "commitment":
                found = Commitment.from_bytes(entry)
                expected = naive_expected(found.request, entries[:index])
                if expected[0] and expected[1] is None:
                    if found.page != expected[0] or found.previous is None:
                        raise FormatError("no")
                elif (found.page, found.start, found.previous) != expected:
                    raise FormatError("no")
        except FormatError:
            bad.append(index)
    return bad


def check_all(entries: list[bytes]) -> EntryCheck:
    check = EntryCheck(POLICY)
    for index, entry in enumerate(entries):
        check.add(index, entry, leaf_hash(entry))
    return check


def test_a_story_without_mistakes_has_no_findings() -> None:
    check = check_all(story())
    assert check.findings == [] == naive_findings(story(200))
    assert check.counts.total() == 700 and min(check.counts.values()) > 30


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("dse"), st.integers(0, 59), st.integers(0, 59)), max_size=4))
def test_findings_are_those_of_the_slow_twin(edits: list[tuple[str, int, int]]) -> None:
    """After entries were dropped, swapped or edited."""
    entries = story(60)
    for what, a, b in edits:
        a, b = a % len(entries), b % len(entries)
        if what == "d":
            del entries[a]
        elif what == "s":
            entries[a], entries[b] = entries[b], entries[a]
        else:
            entries[a] = entries[a].replace(b"1", b"2", 1 + b % 3)
    check = check_all(entries)
    assert [finding.index for finding in check.findings] == naive_findings(entries)


def test_without_a_policy_revocations_are_parsed_and_not_judged() -> None:
    forged = revocation_entry(sign_revocation("aa" * 32, "lost", NOW, [STRANGER]))
    check = EntryCheck(None)
    check.add(0, forged, leaf_hash(forged))
    assert check.findings == [] and check_all([forged]).num_findings == 1
    malformed = [
        b'{"type":"revoke","v":1}',
        rfc8785.dumps({**json.loads(forged), "v": 99}),
        rfc8785.dumps({**json.loads(forged), "envelope": 7}),
        rfc8785.dumps({**json.loads(forged), "envelope": "e30="}),
    ]
    for index, entry in enumerate(malformed, 1):
        check.add(index, entry, leaf_hash(entry))
    assert [finding.index for finding in check.findings] == [1, 2, 3, 4]


def test_open_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left behind is parsed and counted, and is no finding."""
    monkeypatch.setattr(fieldprint.audit, "MAX_CHAINS", 5)
    rows = [chain(f"{i:064x}", 2) for i in range(20)]
    check = check_all([row[0] for row in rows] + [row[1] for row in rows])
    assert len(check.chains) <= 5 and check.findings == []
    assert check.unfollowed == 15 == check.dropped


def test_findings_are_counted_beyond_those_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fieldprint.audit, "MAX_FINDINGS", 3)
    check = check_all([b'{"type":"abort","v":2}'] * 10)
    assert check.num_findings == 10 and [f.index for f in check.findings] == [0, 1, 2]


# The state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audit") / "log"
    with LogWriter(path, SIGNER, create=True) as log:
        log.append([*story(), b'{"type":"abort","v":2}'])
    return path


def finished(folder: Path, state: AuditState | None = None) -> Audit:
    audit = Audit(open_source(folder), POLICY, POLICY, state)
    for _ in audit.run():
        pass
    return audit


def test_an_audit_interrupted_after_any_step_ends_as_one_in_one_go(folder: Path, tmp_path: Path) -> None:
    whole = finished(folder).state().to_bytes()
    for steps in range(3):
        audit = Audit(open_source(folder), POLICY, POLICY)
        positions = audit.run()
        for _ in range(steps):
            next(positions)
        save_state(tmp_path / "state", audit.state())
        again = load_state(tmp_path / "state", POLICY, POLICY)
        assert again is not None and again.audited.position == 256 * steps
        assert finished(folder, again).state().to_bytes() == whole
    assert [finding.index for finding in finished(folder).entries.findings] == [700]


def test_an_audit_interrupted_at_any_entry_leaves_the_state_of_the_last_whole_bundle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives anywhere: counts and chains must not be ahead of the position."""
    whole = finished(folder).state().to_bytes()
    audit = Audit(open_source(folder), POLICY, POLICY)
    next(audit.run())
    before = audit.state().to_bytes()
    add = EntryCheck.add
    for at in range(256, 512):

        def interrupted(self: EntryCheck, index: int, entry: bytes, leaf: bytes, at: int = at) -> None:
            add(self, index, entry, leaf)
            if index == at:
                raise KeyboardInterrupt

        audit = Audit(open_source(folder), POLICY, POLICY, AuditState.from_bytes(before, POLICY, POLICY))
        with monkeypatch.context() as patch:
            patch.setattr(EntryCheck, "add", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(audit.run())
        assert audit.state().to_bytes() == before
    assert finished(folder, audit.state()).state().to_bytes() == whole


def test_a_finished_audit_finds_nothing_new(folder: Path) -> None:
    state = finished(folder).state()
    assert list(Audit(open_source(folder), POLICY, POLICY, state).run()) == []


def test_state_comes_back_from_its_bytes(folder: Path) -> None:
    state = Audit(open_source(folder), POLICY, POLICY).state()
    assert AuditState.from_bytes(state.to_bytes(), POLICY, POLICY) == state
    state = finished(folder).state()
    assert AuditState.from_bytes(state.to_bytes(), POLICY, POLICY) == state


def test_no_state_file_is_no_state(tmp_path: Path) -> None:
    assert load_state(tmp_path / "none", POLICY, POLICY) is None


def test_any_changed_byte_of_the_state_file_is_refused(folder: Path, tmp_path: Path) -> None:
    data = finished(folder).state().to_bytes()
    chance = random.Random(1)
    for position in [0, len(data) - 1, *chance.sample(range(len(data)), 200)]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << chance.randrange(8)
        with pytest.raises(FieldprintError):
            AuditState.from_bytes(bytes(damaged), POLICY, POLICY)
    for damaged in (b"", data[:-1], data + b"\n", data[: len(data) // 2]):
        (tmp_path / "state").write_bytes(damaged)
        with pytest.raises(LogError, match="cannot be used") as caught:
            load_state(tmp_path / "state", POLICY, POLICY)
        assert "--restart" in str(caught.value)


def edited(state: AuditState, part: str, **changes: Any) -> bytes:
    """The state with fields changed and its digest made to fit."""
    from hashlib import sha256

    fields = json.loads(state.to_bytes())
    del fields["sha256"]
    (fields[part] if part else fields).update(changes)
    return rfc8785.dumps({**fields, "sha256": sha256(rfc8785.dumps(fields)).hexdigest()})


def test_a_state_whose_digest_fits_is_checked_all_the_same(folder: Path) -> None:
    state = finished(folder).state()
    assert AuditState.from_bytes(edited(state, ""), POLICY, POLICY) == state
    other = make_policy(STRANGER)
    for policy, data in (
        (other, state.to_bytes()),
        (POLICY, edited(state, "", v=2)),
        (POLICY, edited(state, "", type="receipt")),
        (POLICY, edited(state, "", x=1)),
        (POLICY, edited(state, "", signers=7)),
        (POLICY, edited(state, "audited", position=702)),
        (POLICY, edited(state, "audited", position=-1)),
        (POLICY, edited(state, "audited", position=True)),
        (POLICY, edited(state, "audited", position=700)),
        (POLICY, edited(state, "audited", checkpoint="?")),
        (POLICY, edited(state, "entries", counts={})),
        (POLICY, edited(state, "entries", chains=[[1, 2]])),
        (POLICY, edited(state, "entries", chains=7)),
        (POLICY, edited(state, "entries", findings=[["x", "y"]])),
        (POLICY, edited(state, "entries", num_findings="1")),
    ):
        with pytest.raises(FieldprintError):
            AuditState.from_bytes(data, policy, policy)


def test_a_state_made_with_other_signers_or_none_is_refused(folder: Path, tmp_path: Path) -> None:
    """Else what they would have refused, or let pass, is never looked at again."""
    others = make_policy(STRANGER, LOG)
    two = replace(POLICY, keys={**POLICY.keys, "second": others.keys["owner"]}, revokers=("owner", "second"))
    stricter = replace(two, revocation_threshold=2)
    policies = (None, POLICY, others, two, stricter)
    for made in policies:
        audit = Audit(open_source(folder), POLICY, made)
        save_state(tmp_path / "state", audit.state())
        for policy in policies:
            if policy is made:
                assert load_state(tmp_path / "state", POLICY, policy) == audit.state()
                continue
            with pytest.raises(LogError, match="signers") as caught:
                load_state(tmp_path / "state", POLICY, policy)
            assert "--restart" in str(caught.value)


def test_a_state_outlives_a_change_of_the_policy_that_signatures_do_not_depend_on(folder: Path) -> None:
    """A key's name, a kind's limits; to begin anew for those would throw away what check 2 compares with."""
    rules = {kind: KindRule(("boss",), max_tokens=7, forbidden_taint=("x",)) for kind in POLICY.kinds}
    keys = {"boss": POLICY.keys["owner"], "warden": POLICY.keys["warden"]}
    other = replace(POLICY, keys=keys, kinds=rules, revokers=("boss",))
    data = finished(folder).state().to_bytes()
    assert AuditState.from_bytes(data, other, other).to_bytes() == data


def test_a_state_is_replaced_whole_or_not_at_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Audit(open_source(folder), POLICY, POLICY).state()
    save_state(tmp_path / "state", state)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync",):
        with monkeypatch.context() as patch:
            patch.setattr("os." + name, fail)
            with pytest.raises(LogError, match="No space left"):
                save_state(tmp_path / "state", finished(folder).state())
    assert load_state(tmp_path / "state", POLICY, POLICY) == state
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    with pytest.raises(LogError, match="cannot be written"):
        save_state(tmp_path / "none/state", state)


def test_a_bad_entry_leaves_the_state_in_front_of_it(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "log")
    bundle = tmp_path / "log/tile/entries/001"
    data = bytearray(bundle.read_bytes())
    data[5] ^= 1
    bundle.write_bytes(data)
    audit = Audit(open_source(tmp_path / "log"), POLICY, POLICY)
    with pytest.raises(AuditError):
        for _ in audit.run():
            pass
    assert audit.state().audited.position == 256
    data[5] ^= 1
    bundle.write_bytes(data)
    assert finished(tmp_path / "log", audit.state()).state().to_bytes() == finished(folder).state().to_bytes()


def test_a_state_that_is_ahead_of_the_log_is_refused(folder: Path, tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SIGNER, create=True) as log:
        log.append([b"entry"])
    state = finished(folder).state()
    with pytest.raises(AuditError, match="has 1 entries, and had 701"):
        Audit(open_source(tmp_path / "log"), POLICY, POLICY, state)
    assert Audited(state.audited.signed_checkpoint, 701) == state.audited
