"""The policy: who may sign what. Trust is data in a file that the verifier holds, never a flag in code.

log = "fieldprint.example/log+3c2f8a91+AZ..."

[keys]
owner = "sVn0...base64 of 32 bytes...="

[kinds.identity]
signers = ["owner"]
threshold = 1
max_tokens = 512
max_age_days = 365
forbidden_taint = ["untrusted"]

[revocation]
signers = ["owner"]
threshold = 1
"""

import base64
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fieldprint.anchor.artifact import KINDS, NAME
from fieldprint.anchor.dsse import check_keys, decode_base64
from fieldprint.anchor.keys import key_id
from fieldprint.errors import FormatError
from fieldprint.note import VerifierKey

MAX_POLICY_SIZE = 1 << 20
MAX_TOKENS = 512
MAX_AGE_DAYS = 36500


@dataclass(frozen=True, slots=True)
class KindRule:
    """What the policy asks of anchors of one kind."""

    signers: tuple[str, ...]
    threshold: int = 1
    max_tokens: int = MAX_TOKENS
    max_age_days: int = 365
    forbidden_taint: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """Trusted keys by name (raw 32 bytes), rules by kind, who revokes, and the log's verifier key."""

    keys: Mapping[str, bytes]
    kinds: Mapping[str, KindRule]
    revokers: tuple[str, ...]
    revocation_threshold: int
    log: str
    _loaded: dict[str, Ed25519PublicKey] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        VerifierKey.parse(self.log)
        for name, raw in self.keys.items():
            if not NAME.fullmatch(name) or len(raw) != 32:
                raise FormatError(
                    f"policy key {name!r}: a name of [a-z0-9._-] and 32 bytes in base64 are needed"
                )
            self._loaded[name] = Ed25519PublicKey.from_public_bytes(raw)
        if len(set(self.keys.values())) != len(self.keys):
            raise FormatError("two names in the policy have the same key, which would count twice")
        for kind, rule in self.kinds.items():
            if kind not in KINDS:
                raise FormatError(f"the policy has a rule for {kind!r}, which is no kind")
            self._check_signers(rule.signers, rule.threshold, f"kind {kind}")
            if not 0 < rule.max_tokens <= MAX_TOKENS or not 0 < rule.max_age_days <= MAX_AGE_DAYS:
                raise FormatError(
                    f"kind {kind}: max_tokens must be 1 to {MAX_TOKENS}, max_age_days 1 to {MAX_AGE_DAYS}"
                )
        self._check_signers(self.revokers, self.revocation_threshold, "revocation")

    def _check_signers(self, signers: tuple[str, ...], threshold: int, what: str) -> None:
        unknown = [name for name in signers if name not in self.keys]
        if unknown:
            raise FormatError(f"{what}: no key is named {', '.join(unknown)}")
        if not 1 <= threshold <= len(set(signers)):
            raise FormatError(
                f"{what}: a threshold of {threshold} cannot be met by {len(set(signers))} signers"
            )

    @property
    def log_key(self) -> VerifierKey:
        """The key that signs the log's checkpoints."""
        return VerifierKey.parse(self.log)

    def trusted(self, names: tuple[str, ...] | None = None) -> dict[str, Ed25519PublicKey]:
        """Key id to public key, of these names or of all."""
        return {key_id(self._loaded[name]): self._loaded[name] for name in (names or tuple(self.keys))}

    def name_of(self, identifier: str) -> str:
        """The name of the key with this id."""
        return next(name for name, key in self._loaded.items() if key_id(key) == identifier)

    def to_bytes(self) -> bytes:
        """The file; `from_bytes` is its inverse."""
        lines = [f'log = "{self.log}"', "", "[keys]"]
        lines += [f'"{name}" = "{base64.b64encode(raw).decode()}"' for name, raw in sorted(self.keys.items())]
        for kind, rule in sorted(self.kinds.items()):
            lines += [
                "",
                f"[kinds.{kind}]",
                f"signers = {_list(rule.signers)}",
                f"threshold = {rule.threshold}",
                f"max_tokens = {rule.max_tokens}",
                f"max_age_days = {rule.max_age_days}",
                f"forbidden_taint = {_list(rule.forbidden_taint)}",
            ]
        lines += [
            "",
            "[revocation]",
            f"signers = {_list(self.revokers)}",
            f"threshold = {self.revocation_threshold}",
        ]
        return ("\n".join(lines) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Policy":
        """The policy in a TOML file.

        Raises:
            FormatError: not TOML, an unknown or missing field, a signer without a key, a threshold nobody can meet.
        """
        if len(data) > MAX_POLICY_SIZE:
            raise FormatError(f"the policy has more than {MAX_POLICY_SIZE} bytes")
        try:
            fields = tomllib.loads(data.decode())
        except (ValueError, RecursionError) as error:  # among them UnicodeDecodeError and TOMLDecodeError
            raise FormatError(f"the policy is not TOML: {error}") from error
        check_keys(fields, {"keys", "kinds", "log", "revocation"}, "the policy")
        check_keys(fields["revocation"], {"signers", "threshold"}, "the policy's revocation")
        if not isinstance(fields["keys"], dict) or not isinstance(fields["kinds"], dict):
            raise FormatError("the policy's keys and kinds must be tables")
        return cls(
            keys={name: decode_base64(text, f"policy key {name}") for name, text in fields["keys"].items()},
            kinds={kind: _rule(kind, rule) for kind, rule in fields["kinds"].items()},
            revokers=_names(fields["revocation"]["signers"]),
            revocation_threshold=_integer(fields["revocation"]["threshold"]),
            log=str(fields["log"]),
        )


def _rule(kind: str, rule: Any) -> KindRule:
    keys = {"signers", "threshold", "max_tokens", "max_age_days", "forbidden_taint"}
    check_keys(rule, keys, f"the policy's kind {kind}")
    return KindRule(
        _names(rule["signers"]),
        _integer(rule["threshold"]),
        _integer(rule["max_tokens"]),
        _integer(rule["max_age_days"]),
        _names(rule["forbidden_taint"]),
    )


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(x, str) and NAME.fullmatch(x) for x in value):
        raise FormatError("the policy needs a list of names where signers or taint labels stand")
    return tuple(value)


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError("the policy needs an integer where thresholds and limits stand")
    return value


def _list(names: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
