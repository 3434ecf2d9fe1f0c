"""Canonical JSON by the fast path is what rfc8785 writes, and refuses what it refuses."""

import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from fieldprint.anchor.dsse import parse_canonical
from fieldprint.errors import FormatError

scalars = st.none() | st.booleans() | st.integers(-(2**54), 2**54) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def naive(data: bytes) -> dict[str, Any]:
    """The slow twin: as the first version did it."""

    def refuse(_: str) -> float:
        raise ValueError

    try:
        fields = json.loads(data, parse_float=refuse, parse_constant=refuse)
        again = rfc8785.dumps(fields)
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise FormatError("no") from error
    if again != data or not isinstance(fields, dict):
        raise FormatError("no")
    return fields


def both(data: bytes) -> bool:
    """Whether both accept it, with the same result; they must agree."""
    try:
        expected = naive(data)
    except FormatError:
        with pytest.raises(FormatError):
            parse_canonical(data, "it", 1 << 20)
        return False
    assert parse_canonical(data, "it", 1 << 20) == expected
    return True


@given(st.dictionaries(st.text(max_size=6), values, max_size=5))
def test_canonical_bytes_are_accepted_by_both(fields: dict[str, Any]) -> None:
    try:
        data = rfc8785.dumps(fields)
    except rfc8785.CanonicalizationError:
        data = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("utf-8", "replace")
        assert not both(data)
        return
    assert both(data)


@given(st.dictionaries(st.text(max_size=6), values, max_size=5), st.booleans(), st.booleans(), st.booleans())
def test_other_spellings_are_judged_alike(
    fields: dict[str, Any], ordered: bool, ascii_only: bool, spaced: bool
) -> None:
    separators = (", ", ": ") if spaced else (",", ":")
    text = json.dumps(fields, sort_keys=ordered, ensure_ascii=ascii_only, separators=separators)
    both(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1.0}', b'{"a":1e3}', b'{"a":-0}', b'{"a":NaN}', b'{"a":9007199254740991}', b'{"a":9007199254740992}',
        b'{"a":-9007199254740991}', b'{"a":-9007199254740992}', b'{"a":1,"a":1}', b'{"b":1,"a":2}', b'{"a":"\\u0041"}',
        b'{"a":"\\u000a"}', b'{"a":"\\n\\b\\f\\r\\t\\"\\\\\\u0000\\u001f"}', b'{"a":"\\/"}', b'{"a":"\x7f"}', b"[]", b"1",
        b'\xef\xbb\xbf{"a":1}', '{"a":1}'.encode("utf-16"), b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\\ud800"}',
        '{"é":1,"z":2}'.encode(), '{"z":2,"é":1}'.encode(), '{"\U0001f600":1,"\ufb33":2}'.encode(),
        '{"\ufb33":2,"\U0001f600":1}'.encode(), b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"a":' + b"9" * 5000 + b"}", b"",
    ],
)  # fmt: skip
def test_edges_are_judged_alike(data: bytes) -> None:
    both(data)
