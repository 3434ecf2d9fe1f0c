"""The leaf: what one page of tokens commits to, as canonical JSON (RFC 8785) in the log.

    {"anchor":"5e..","attention":{"g":"0.0","num_sinks":0,"operator":"floor","window":512},"end":16,"fieldprint":"9a..",
     "kv":"c1..","model":"77..","page":0,"previous":null,"prompt_len":31,"request":"0b..","sampler":{"method":"greedy"},
     "start":0,"text":null,"tokens":"d4..","type":"commitment","v":1}

Tokens, prompt and text are committed to by salted digests: the log tells nothing about them, the receipt opens them.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

import rfc8785

from fieldprint.anchor.artifact import check_digest
from fieldprint.anchor.dsse import check_keys, check_version, parse_canonical
from fieldprint.errors import FormatError

MAX_LEAF_SIZE = 65535
SALT_SIZE = 16
Scalars = Mapping[str, str | int | bool | None]


def _salted(kind: bytes, salt: bytes, body: bytes) -> str:
    if len(salt) != SALT_SIZE:
        raise ValueError(f"salt must have {SALT_SIZE} bytes, not {len(salt)}")
    return sha256(b"fieldprint/" + kind + b"/v1\n" + salt + struct.pack("<Q", len(body)) + body).hexdigest()


def _ids(token_ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(token_ids)}i", *token_ids)


def request_digest(salt: bytes, prompt_ids: Sequence[int]) -> str:
    """Hex digest that names a request: salted SHA-256 of its prompt's ids as little-endian int32."""
    return _salted(b"request", salt, _ids(prompt_ids))


def tokens_digest(salt: bytes, start: int, token_ids: Sequence[int]) -> str:
    """Hex salted SHA-256 of the ids at positions from `start` on."""
    return _salted(b"tokens", salt, struct.pack("<Q", start) + _ids(token_ids))


def text_digest(salt: bytes, text: str) -> str:
    """Hex salted SHA-256 of the answer's text in UTF-8."""
    return _salted(b"text", salt, text.encode())


@dataclass(frozen=True, slots=True)
class Commitment:
    """A page: tokens at positions [start, end) of the request's own context, and the K/V that was there.

    kv: BLAKE3 over the page's K/V bytes, layer by layer. previous: RFC 9162 leaf hash of the request's leaf before.
    text: on the request's last leaf, the digest of the whole answer. Digests are hex.
    """

    request: str
    page: int
    start: int
    end: int
    prompt_len: int
    tokens: str
    kv: str
    anchor: str | None
    fieldprint: str | None
    model: str
    sampler: Scalars
    attention: Scalars
    previous: str | None
    text: str | None

    def __post_init__(self) -> None:
        for name in ("request", "tokens", "kv", "model"):
            check_digest(getattr(self, name), f"the leaf's {name}")
        for name in ("anchor", "fieldprint", "previous", "text"):
            if getattr(self, name) is not None:
                check_digest(getattr(self, name), f"the leaf's {name}")
        for name in ("page", "start", "end", "prompt_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
                raise FormatError(f"the leaf's {name} must be an integer from 0 on")
        if self.start >= self.end:
            raise FormatError("a leaf covers at least one position")
        for name in ("sampler", "attention"):
            _check_scalars(getattr(self, name), name)

    def to_bytes(self) -> bytes:
        """The leaf's bytes; `from_bytes` is the inverse."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return rfc8785.dumps(values | {"type": "commitment", "v": 1})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Commitment":
        """The commitment in a leaf.

        Raises:
            FormatError: not canonical, not a commitment, or with other fields.
        """
        return cls.from_fields(parse_canonical(data, "the leaf", MAX_LEAF_SIZE))

    @classmethod
    def from_fields(cls, values: dict[str, Any]) -> "Commitment":
        """The commitment in a parsed entry; raises as `from_bytes` does."""
        check_keys(values, _LEAF_KEYS, "the leaf")
        check_version(values, "commitment", "the entry")
        return cls(**{name: value for name, value in values.items() if name not in ("type", "v")})


_LEAF_KEYS = {f.name for f in fields(Commitment)} | {"type", "v"}


@dataclass(frozen=True, slots=True)
class AbortEntry:
    """The note in the log that tokens of a request from `page` on were rolled back."""

    request: str
    page: int
    reason: str

    def to_bytes(self) -> bytes:
        """The entry's bytes."""
        return rfc8785.dumps(
            {"page": self.page, "reason": self.reason, "request": self.request, "type": "abort", "v": 1}
        )

    @classmethod
    def from_fields(cls, values: dict[str, Any]) -> "AbortEntry":
        """The abort in a parsed entry.

        Raises:
            FormatError: it is none of version 1, or a field is missing, unknown or of another type.
        """
        check_keys(values, {"page", "reason", "request", "type", "v"}, "the abort entry")
        check_version(values, "abort", "the entry")
        check_digest(values["request"], "the abort's request")
        page, reason = values["page"], values["reason"]
        if type(page) is not int or not 0 <= page < 2**31 or not isinstance(reason, str):
            raise FormatError("an abort names a page from 0 on and a reason")
        return cls(values["request"], page, reason)


def _check_scalars(value: object, name: str) -> None:
    if not isinstance(value, dict) or not all(
        isinstance(k, str) and (v is None or isinstance(v, (str, int))) for k, v in value.items()
    ):
        raise FormatError(f"the leaf's {name} must be an object of texts, integers, booleans and nulls")
    if all(key.isascii() and _is_plain(item) for key, item in value.items()):
        return
    try:
        rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise FormatError(f"the leaf's {name} cannot be written: {error}") from error


def _is_plain(value: str | int | None) -> bool:
    """Whether rfc8785 certainly can write it; asking rfc8785 takes longer than all else that a leaf is checked for."""
    if isinstance(value, str):
        return value.isascii()
    return value is None or -(2**53) < value < 2**53
