"""Trust policies: the file comes back, every malformed one is refused, and quorums are reckoned as by hand."""

from collections.abc import Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.errors import FormatError, VerificationError
from fieldprint.note import VerifierKey
from fieldprint.tlog import TrustPolicy, verify_checkpoint, verify_cosignatures
from fieldprint.tlog.trust import Group, KnownLog, KnownWitness
from tests.witnessing import EAST, LOG, NORTH, SOUTH, head, latticed, signed, trust

N, S, E = (str(cosigner.verifier_key) for cosigner in (NORTH, SOUTH, EAST))
L = str(LOG.verifier_key)
KEYS = [latticed(f"w{i}", 20 + i).verifier_key for i in range(6)]

EXAMPLE = f"""\
# The form of the specification's example: two operators, and both are needed.
log {L} https://log.example/

 \twitness X1 {N}
witness X2\t{S} https://south.example/prefix
group X-witnesses 1 X1 X2

witness Y1 {E}
group Y-witnesses any Y1
  # an indented comment

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""


def test_the_example_is_read_as_it_is_meant() -> None:
    policy = TrustPolicy.from_bytes(EXAMPLE.encode())
    assert policy.logs == (KnownLog(LOG.verifier_key, "https://log.example/"),)
    assert policy.witnesses[1] == KnownWitness("X2", SOUTH.verifier_key, "https://south.example/prefix")
    assert policy.groups[2] == Group("X-and-Y", 2, ("X-witnesses", "Y-witnesses"))
    north, south, east = (cosigner.verifier_key for cosigner in (NORTH, SOUTH, EAST))
    met = [keys for keys in ({north}, {east}, {north, south}, {south, east}) if policy.quorum_met(keys)]
    assert met == [{south, east}]
    assert policy.quorum_text == "X-and-Y: 2 of X-witnesses, Y-witnesses"


def naive_met(policy: TrustPolicy, name: str, keys: Collection[VerifierKey]) -> bool:
    """Straight from the specification, by recursion."""
    if name == "none":
        return True
    for witness in policy.witnesses:
        if witness.name == name:
            return witness.key in keys
    (group,) = [group for group in policy.groups if group.name == name]
    return sum(naive_met(policy, member, keys) for member in group.members) >= group.threshold


@st.composite
def policies(draw: st.DrawFn) -> TrustPolicy:
    count = draw(st.integers(0, len(KEYS)))
    letters = st.text(st.sampled_from("ab-#=\u00e9\u212a\udc80"), max_size=3)
    witnesses = tuple(
        KnownWitness(f"w{i}{draw(letters)}", KEYS[i], draw(st.sampled_from(["", "https://w.example/"])))
        for i in range(count)
    )
    free, groups = [witness.name for witness in witnesses], []
    for number in range(draw(st.integers(0, 3))):
        if free:
            members = draw(st.lists(st.sampled_from(free), min_size=1, unique=True))
            groups.append(Group(f"g{number}", draw(st.integers(1, len(members))), tuple(members)))
            free = [name for name in free if name not in members] + [f"g{number}"]
    names = ["none", *(w.name for w in witnesses), *(group.name for group in groups)]
    logs = (KnownLog(LOG.verifier_key),) if draw(st.booleans()) else ()
    return TrustPolicy(logs, witnesses, tuple(groups), draw(st.sampled_from(names)))


@settings(deadline=None)
@given(policies())
def test_a_trust_policy_round_trips(policy: TrustPolicy) -> None:
    assert TrustPolicy.from_bytes(policy.to_bytes()) == policy


@settings(deadline=None)
@given(policies(), st.sets(st.sampled_from(KEYS)), st.sampled_from(KEYS))
def test_the_quorum_is_that_of_the_naive_twin_and_one_more_never_breaks_it(
    policy: TrustPolicy, keys: set[VerifierKey], more: VerifierKey
) -> None:
    assert policy.quorum_met(keys) == naive_met(policy, policy.quorum, keys)
    assert policy.quorum_met(keys) <= policy.quorum_met({*keys, more})


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        TrustPolicy.from_bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_changed_byte_gives_another_policy_or_an_error(data: st.DataObject) -> None:
    """What a changed file says is never taken for what the first one said, outside of comments and spaces."""
    text = bytearray(f"log {L}\nwitness n {N}\nwitness s {S}\ngroup g 1 n s\nquorum g\n".encode())
    before = TrustPolicy.from_bytes(bytes(text))
    position = data.draw(st.integers(0, len(text) - 1))
    old, new = text[position], data.draw(st.integers(0, 255))
    text[position] = new
    try:
        after = TrustPolicy.from_bytes(bytes(text))
    except FormatError:
        return
    assert after != before or new == old or {old, new} <= set(b"\t ")


GOOD = f"witness n {N}\nwitness s {S}\ngroup g any n s\nquorum g\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "newline"),
        ("quorum none", "newline"),
        ("\n", "0 quorum lines"),
        ("quorum none\nquorum none\n", "2 quorum lines"),
        (f"witness n {N}\n", "0 quorum lines"),
        (GOOD.replace("\n", "\r\n"), "control character"),
        (GOOD + "# \x00\n", "control character"),
        (GOOD + "# \x7f\n", "control character"),
        (GOOD + "wittness x\n", "line 5 of the trust policy: not of the form"),
        (GOOD + "QUORUM g\n", "not of the form"),
        (GOOD + "log\n", "not of the form"),
        (GOOD + f"log {L} a b\n", "not of the form"),
        (GOOD + f"log {N}\n", "type Ed25519"),
        (GOOD + f"log {L}\nlog {L}\n", "one public key"),
        (GOOD + f"witness x {L}\n", "the verifier key is not a key of type"),
        (GOOD + f"witness x {N}\n", "one public key"),
        (GOOD + f"witness n {E}\n", "taken"),
        (GOOD + f"witness g {E}\n", "taken"),
        (GOOD + f"witness none {E}\n", "taken"),
        (GOOD + f"witness x {E[:-2]}\n", "base64"),
        (GOOD.replace("g any", "none any"), "taken"),
        (GOOD.replace("g any", "n any"), "taken"),
        (GOOD.replace("any n s", "any"), "not of the form"),
        (GOOD.replace("any n s", "any n x"), "not defined on a line before"),
        (GOOD.replace("any n s", "any n g"), "not defined on a line before"),
        (GOOD.replace("any n s", "any n none"), "not defined on a line before"),
        (GOOD.replace("any n s", "any n n"), "twice"),
        (GOOD.replace("any n s", "0 n s"), "neither all nor any"),
        (GOOD.replace("any n s", "3 n s"), "no threshold"),
        (GOOD.replace("any n s", "01 n s"), "neither all nor any"),
        (GOOD.replace("any n s", "+1 n s"), "neither all nor any"),
        (GOOD.replace("any n s", "ANY n s"), "neither all nor any"),
        (GOOD.replace("any n s", "\u0661 n s"), "neither all nor any"),
        (GOOD.replace("quorum g", "group h any n\nquorum h"), "twice"),
        (GOOD.replace("quorum g", "quorum x"), "not defined on a line before"),
        (GOOD.replace("quorum g", "quorum g n"), "not of the form"),
        (f"quorum n\nwitness n {N}\n", "not defined on a line before"),
        (f"log {L}\nwitness n {VerifierKey(NORTH.name, NORTH.verifier_key.public_bytes)}\nquorum n\n", "type"),
    ],
)  # fmt: skip
def test_malformed_trust_policies_are_refused(text: str, error: str) -> None:
    assert TrustPolicy.from_bytes(GOOD.encode()).quorum == "g"
    with pytest.raises(FormatError, match=error):
        TrustPolicy.from_bytes(text.encode())


def test_a_log_is_no_witness_of_itself() -> None:
    private_of_log = latticed("l", 1)
    with pytest.raises(FormatError, match="no witness of itself"):
        TrustPolicy(
            (KnownLog(private_of_log.verifier_key),), (KnownWitness("w", private_of_log.verifier_key),)
        )


def test_the_recommended_size_is_read_and_a_much_larger_one_refused() -> None:
    many = tuple(KnownWitness(f"w{i}", latticed(f"w{i}", i).verifier_key) for i in range(100, 132))
    groups = tuple(Group(f"g{i}", 1, (f"w{100 + i}",)) for i in range(32))
    policy = TrustPolicy((), many, groups, "g31")
    assert TrustPolicy.from_bytes(policy.to_bytes()) == policy
    with pytest.raises(FormatError, match="more than 1024"):
        TrustPolicy((), (), tuple(Group(f"g{i}", 1, ("w",)) for i in range(1025)))
    with pytest.raises(FormatError, match="more than 1048576"):
        TrustPolicy.from_bytes(b"#" * 1048576 + b"\n")


@pytest.mark.parametrize("name", ["", "a b", "a\tb", "a\n", "\x7f", "none"])
def test_names_that_a_line_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(FormatError):
        TrustPolicy((), (KnownWitness(name, NORTH.verifier_key),))
    with pytest.raises(FormatError):
        TrustPolicy((), (KnownWitness("w", NORTH.verifier_key, "http://a b"),))


def test_a_checkpoint_needs_its_own_logs_key() -> None:
    note = signed(head(5), NORTH)
    assert verify_checkpoint(note, [LOG.verifier_key]) == head(5)
    other = VerifierKey("fieldprint.example/other", LOG.verifier_key.public_bytes)
    with pytest.raises(VerificationError, match="no trusted key"):
        verify_checkpoint(note, [other])
    with pytest.raises(VerificationError, match="not of witness"):
        verify_checkpoint(note, [NORTH.verifier_key])


def test_cosignatures_must_be_enough_and_none_of_them_false() -> None:
    policy = trust(NORTH, SOUTH, EAST, threshold=2)
    found = verify_cosignatures(signed(head(5), NORTH, EAST), policy)
    assert [signature.key for signature in found] == [NORTH.verifier_key, EAST.verifier_key]
    with pytest.raises(VerificationError, match="wanted quorum: 2 of w0, w1, w2, found witness"):
        verify_cosignatures(signed(head(5), NORTH, latticed()), policy)
    other = signed(head(6), SOUTH).decode().splitlines(keepends=True)[-1]
    with pytest.raises(VerificationError, match="south"):
        verify_cosignatures(signed(head(5), NORTH, EAST) + other.encode(), policy)
    assert verify_cosignatures(signed(head(5)), trust()) == ()
