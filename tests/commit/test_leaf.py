"""The leaf: its bytes come back, every field is bound, and nothing but a commitment parses as one."""

import json
import struct
from dataclasses import fields, replace
from hashlib import sha256

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from fieldprint.commit import AbortEntry, Commitment, request_digest, text_digest, tokens_digest
from fieldprint.commit.leaf import MAX_LEAF_SIZE
from fieldprint.errors import FormatError

LEAF = Commitment(
    request="01" * 32,
    page=2,
    start=32,
    end=48,
    prompt_len=40,
    tokens="02" * 32,
    kv="03" * 32,
    anchor="04" * 32,
    fieldprint="05" * 32,
    model="06" * 32,
    sampler={"method": "greedy"},
    attention={"g": "0.1", "operator": "floor", "window": None},
    previous="07" * 32,
    text=None,
)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
numbers = st.integers(0, 2**31 - 2)
scalars = st.dictionaries(
    st.text(max_size=8), st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8)), max_size=4
)
tokens = st.lists(st.integers(0, 2**31 - 1), max_size=40)
salts = st.binary(min_size=16, max_size=16)


@st.composite
def commitments(draw: st.DrawFn) -> Commitment:
    start = draw(numbers)
    return Commitment(
        request=draw(digests),
        page=draw(numbers),
        start=start,
        end=draw(st.integers(start + 1, 2**31 - 1)),
        prompt_len=draw(numbers),
        tokens=draw(digests),
        kv=draw(digests),
        anchor=draw(st.none() | digests),
        fieldprint=draw(st.none() | digests),
        model=draw(digests),
        sampler=draw(scalars),
        attention=draw(scalars),
        previous=draw(st.none() | digests),
        text=draw(st.none() | digests),
    )


@given(commitments())
def test_a_leaf_round_trips(leaf: Commitment) -> None:
    assert Commitment.from_bytes(leaf.to_bytes()) == leaf


def test_every_field_is_bound() -> None:
    """Another value in any one field gives other bytes."""
    other = {str: "ff" * 32, int: 47, dict: {"method": "other"}, type(None): "ff" * 32}
    for field in fields(Commitment):
        changed = replace(LEAF, **{field.name: other[type(getattr(LEAF, field.name))]})
        assert changed.to_bytes() != LEAF.to_bytes(), field.name


@pytest.mark.parametrize(
    "change",
    [
        {"start": 48},
        {"start": 49},
        {"page": -1},
        {"page": True},
        {"end": 2**31},
        {"prompt_len": "40"},
        {"request": None},
        {"kv": "03" * 31},
        {"kv": "0G" * 32},
        {"model": "AB" * 32},
        {"anchor": ""},
        {"text": 5},
        {"previous": "07"},
        {"sampler": []},
        {"sampler": {"t": [1]}},
        {"attention": None},
    ],
    ids=str,
)
def test_impossible_fields_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        replace(LEAF, **change)  # type: ignore[arg-type]
    values = json.loads(LEAF.to_bytes()) | change
    with pytest.raises(FormatError):
        Commitment.from_bytes(rfc8785.dumps(values))


NUMBERS = ("page", "start", "end", "prompt_len")
NEEDED, OPTIONAL = ("request", "tokens", "kv", "model"), ("anchor", "fieldprint", "previous", "text")


@pytest.mark.parametrize("name", [*NUMBERS, *NEEDED, *OPTIONAL])
def test_no_number_and_no_digest_goes_unchecked(name: str) -> None:
    wrong: tuple[object, ...] = (True, "1", None, -1, 2**31)
    if name not in NUMBERS:
        wrong = (1, "", "0" * 63, "0" * 65, "AB" * 32, "0g" * 32, "ab" * 32 + "\n")
    for value in wrong if name in (*NUMBERS, *OPTIONAL) else (None, *wrong):
        with pytest.raises(FormatError, match=f"the leaf's {name}"):
            replace(LEAF, **{name: value})  # type: ignore[arg-type]


def test_numbers_reach_to_the_largest_int32() -> None:
    largest = replace(LEAF, page=2**31 - 1, start=2**31 - 2, end=2**31 - 1, prompt_len=2**31 - 1)
    assert Commitment.from_bytes(largest.to_bytes()) == largest


@pytest.mark.parametrize("name", ["sampler", "attention"])
@pytest.mark.parametrize("value", [None, [], "x", 1, {"a": []}, {"a": {}}, {"a": 1.5}, {1: "a"}], ids=str)
def test_settings_are_flat(name: str, value: object) -> None:
    with pytest.raises(FormatError, match=f"the leaf's {name}"):
        replace(LEAF, **{name: value})  # type: ignore[arg-type]


def test_a_leaf_has_at_most_the_bytes_of_a_log_entry() -> None:
    room = MAX_LEAF_SIZE - len(replace(LEAF, sampler={"x": ""}).to_bytes())
    largest = replace(LEAF, sampler={"x": "x" * room})
    assert len(largest.to_bytes()) == 65535
    assert Commitment.from_bytes(largest.to_bytes()) == largest
    with pytest.raises(FormatError, match="more than 65535"):
        Commitment.from_bytes(replace(LEAF, sampler={"x": "x" * (room + 1)}).to_bytes())


def test_an_abort_entry_is_these_bytes() -> None:
    entry = AbortEntry(request="01" * 32, page=2, reason="damaged").to_bytes()
    request = b"01" * 32
    assert entry == b'{"page":2,"reason":"damaged","request":"%s","type":"abort","v":1}' % request


def test_other_entries_are_no_commitments() -> None:
    values = json.loads(LEAF.to_bytes())
    abort = AbortEntry(request="01" * 32, page=2, reason="damaged context pages [1]").to_bytes()
    for data in (
        abort,
        b"",
        b"[]",
        LEAF.to_bytes() + b"\n",
        LEAF.to_bytes().replace(b":", b": ", 1),
        rfc8785.dumps(values | {"v": 2}),
        rfc8785.dumps(values | {"type": "promote"}),
        rfc8785.dumps(values | {"more": 1}),
        rfc8785.dumps({k: v for k, v in values.items() if k != "kv"}),
        b'{"a":1,"a":1}',
    ):
        with pytest.raises(FormatError):
            Commitment.from_bytes(data)


@given(salts, numbers, tokens, st.text(max_size=30))
def test_digests_are_the_documented_bytes(salt: bytes, start: int, ids: list[int], text: str) -> None:
    """docs/formats/commitment.md, computed a second time."""

    def salted(kind: bytes, body: bytes) -> str:
        head = b"fieldprint/" + kind + b"/v1\n" + salt
        return sha256(head + len(body).to_bytes(8, "little") + body).hexdigest()

    raw = b"".join(token.to_bytes(4, "little") for token in ids)
    assert request_digest(salt, ids) == salted(b"request", raw)
    assert tokens_digest(salt, start, ids) == salted(b"tokens", start.to_bytes(8, "little") + raw)
    assert text_digest(salt, text) == salted(b"text", text.encode())


def test_digests_keep_kinds_salts_and_places_apart() -> None:
    salt, other, ids = bytes(16), bytes(15) + b"\1", [1, 2, 3]
    body = struct.pack("<3i", *ids).decode()
    seen = {
        request_digest(salt, ids),
        request_digest(other, ids),
        request_digest(salt, ids[:2]),
        tokens_digest(salt, 0, ids),
        tokens_digest(salt, 1, ids),
        text_digest(salt, body),
    }
    assert len(seen) == 6
    for length in (0, 15, 17):
        for attempt in (
            lambda salt: text_digest(salt, "x"),
            lambda salt: request_digest(salt, ids),
            lambda salt: tokens_digest(salt, 0, ids),
        ):
            with pytest.raises(ValueError, match="16 bytes"):
                attempt(bytes(length))


@pytest.mark.parametrize("value", [{"seed": 2**60}, {"seed": -(2**53)}, {"operator": "\ud800"}], ids=ascii)
def test_what_could_not_be_written_is_refused_when_it_is_made(value: dict[str, object]) -> None:
    for name in ("sampler", "attention"):
        with pytest.raises(FormatError, match="cannot be written"):
            replace(LEAF, **{name: value})  # type: ignore[arg-type]
