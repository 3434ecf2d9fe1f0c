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

[witnesses]
keys = ["witness.example/north+7d0d2a51+BG...", "witness.example/south+91ff3c02+BK..."]
minimum = 1

The last table may be missing; then no witness is needed.
"""

import base64
import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fieldprint.anchor.artifact import KINDS, NAME
from fieldprint.anchor.dsse import check_keys, decode_base64
from fieldprint.anchor.keys import key_id
from fieldprint.errors import FormatError
from fieldprint.note import COSIGNATURES, VerifierKey

MAX_POLICY_SIZE = 1 << 20
MAX_TOKENS = 512
MAX_AGE_DAYS = 36500
MAX_WITNESSES = 64


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
    """Trusted keys by name (raw 32 bytes), rules by kind, who revokes, the log's verifier key, and its witnesses.

    witnesses: verifier keys of type 0x04 or 0x06; keys of one name are one witness.
    minimum_witnesses: how many witnesses must have cosigned a receipt's checkpoint.
    """

    keys: Mapping[str, bytes]
    kinds: Mapping[str, KindRule]
    revokers: tuple[str, ...]
    revocation_threshold: int
    log: str
    witnesses: tuple[str, ...] = ()
    minimum_witnesses: int = 0
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
        self._check_witnesses()

    def _check_witnesses(self) -> None:
        keys = self.witness_keys
        public = {key.public_bytes for key in keys}
        if len(public) != len(keys) or self.log_key.public_bytes in public:
            raise FormatError(
                "a witness's key stands twice in the policy, or is the log's, which is no witness"
            )
        names = {key.name for key in keys}
        if len(keys) > MAX_WITNESSES or not 0 <= self.minimum_witnesses <= len(names):
            raise FormatError(
                f"a minimum of {self.minimum_witnesses} cannot be met by {len(names)} witnesses, or "
                f"there are more than {MAX_WITNESSES}"
            )

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

    @property
    def log_keys(self) -> tuple[VerifierKey, ...]:
        """The log's key, as one of a trust policy's."""
        return (self.log_key,)

    @property
    def witness_keys(self) -> tuple[VerifierKey, ...]:
        """The keys of the witnesses."""
        return tuple(VerifierKey.parse(text, COSIGNATURES) for text in self.witnesses)

    @property
    def quorum_text(self) -> str:
        """What is asked of witnesses, in words."""
        names = dict.fromkeys(key.name for key in self.witness_keys)
        return f"{self.minimum_witnesses} of {', '.join(names) or 'none'}"

    def quorum_met(self, keys: Collection[VerifierKey]) -> bool:
        """Whether cosignatures by these keys are enough: as many names as the minimum among the witnesses."""
        return len({key.name for key in set(keys).intersection(self.witness_keys)}) >= self.minimum_witnesses

    def trusted(self, names: tuple[str, ...] | None = None) -> dict[str, Ed25519PublicKey]:
        """Key id to public key, of these names or of all."""
        return {key_id(self._loaded[name]): self._loaded[name] for name in (names or tuple(self.keys))}

    def name_of(self, identifier: str) -> str:
        """The name of the key with this id."""
        return next(name for name, key in self._loaded.items() if key_id(key) == identifier)

    def to_bytes(self) -> bytes:
        """The file; `from_bytes` is its inverse."""
        lines = [f"log = {_text(self.log)}", "", "[keys]"]
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
        if self.witnesses:
            lines += [
                "",
                "[witnesses]",
                f"keys = {_list(self.witnesses)}",
                f"minimum = {self.minimum_witnesses}",
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
        witnesses = fields.pop("witnesses", {"keys": [], "minimum": 0})
        check_keys(fields, {"keys", "kinds", "log", "revocation"}, "the policy")
        check_keys(witnesses, {"keys", "minimum"}, "the policy's witnesses")
        check_keys(fields["revocation"], {"signers", "threshold"}, "the policy's revocation")
        if not isinstance(fields["keys"], dict) or not isinstance(fields["kinds"], dict):
            raise FormatError("the policy's keys and kinds must be tables")
        return cls(
            keys={name: decode_base64(text, f"policy key {name}") for name, text in fields["keys"].items()},
            kinds={kind: _rule(kind, rule) for kind, rule in fields["kinds"].items()},
            revokers=_names(fields["revocation"]["signers"]),
            revocation_threshold=_integer(fields["revocation"]["threshold"]),
            log=str(fields["log"]),
            witnesses=_texts(witnesses["keys"]),
            minimum_witnesses=_integer(witnesses["minimum"]),
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


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise FormatError("the policy needs a list of texts where the witnesses' keys stand")
    return tuple(value)


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError("the policy needs an integer where thresholds and limits stand")
    return value


def _list(texts: tuple[str, ...]) -> str:
    return "[" + ", ".join(map(_text, texts)) + "]"


def _text(text: str) -> str:
    """A TOML basic string: a key's name may hold quotes and backslashes, and JSON escapes them as TOML does."""
    return json.dumps(text, ensure_ascii=False)
