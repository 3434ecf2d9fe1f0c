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
adds_taint = ["self-written"]
models = ["1b0e...digest of a model folder..."]
on_revoke = "reprefill"

[revocation]
signers = ["owner"]
threshold = 1

[endorsement.untrusted]
signers = ["owner", "reviewer"]
threshold = 2

[override]
signers = ["warden"]
threshold = 1

[status]
signers = ["status"]
threshold = 1
max_age_seconds = 3600

[keyless.release]
identity = "https://github.com/example/agent/.github/workflows/sign.yml@refs/heads/main"
issuer = "https://token.actions.githubusercontent.com"
trusted_root = "<base64 of a Sigstore trusted root>"

[witnesses]
keys = ["witness.example/north+7d0d2a51+BG...", "witness.example/south+91ff3c02+BK..."]
minimum = 1

What may be missing: `adds_taint`, `models` (any model then) and `on_revoke` ("stop" then), and the last five tables.
Then nobody endorses, nobody overrides, no status root is asked for, nobody signs without a key, and no witness is needed.
"""

import base64
import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fieldprint.anchor.artifact import KINDS, NAME, check_digest
from fieldprint.anchor.dsse import SignatureVerifier, check_keys, decode_base64
from fieldprint.anchor.keyless import Keyless
from fieldprint.anchor.keys import key_id
from fieldprint.anchor.statements import MAX_STATUS_AGE
from fieldprint.errors import FormatError
from fieldprint.note import COSIGNATURES, VerifierKey

MAX_POLICY_SIZE = 1 << 20
MAX_TOKENS = 512
MAX_AGE_DAYS = 36500
MAX_WITNESSES = 64
OnRevoke = Literal["stop", "reprefill"]


@dataclass(frozen=True, slots=True)
class KindRule:
    """What the policy asks of anchors of one kind.

    adds_taint: labels that every anchor of this kind has. models: digests of the models that it may be used with; none
    means any. on_revoke: what becomes of sequences that attended to an anchor when it is revoked.
    """

    signers: tuple[str, ...]
    threshold: int = 1
    max_tokens: int = MAX_TOKENS
    max_age_days: int = 365
    forbidden_taint: tuple[str, ...] = ()
    adds_taint: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    on_revoke: OnRevoke = "stop"


@dataclass(frozen=True, slots=True)
class SignerRule:
    """Whose signatures count for one purpose, and how many are needed."""

    signers: tuple[str, ...]
    threshold: int = 1


@dataclass(frozen=True, slots=True)
class StatusRule:
    """Who signs status roots, and how old one may be for a verifier to rely on it."""

    signers: tuple[str, ...]
    threshold: int = 1
    max_age_seconds: int = 3600


@dataclass(frozen=True, slots=True)
class Policy:
    """Trusted keys by name (raw 32 bytes), rules by kind, who revokes, the log's verifier key, and its witnesses.

    witnesses: verifier keys of type 0x04 or 0x06; keys of one name are one witness.
    minimum_witnesses: how many witnesses must have cosigned a receipt's checkpoint.
    endorsement: who may take a taint label away, by label; the others nobody may.
    keyless: identities that sign by Sigstore bundles, by name; they stand where names of keys do.
    override: who may override, with keys that sign no anchors. status: who signs the status roots that are asked for.
    """

    keys: Mapping[str, bytes]
    kinds: Mapping[str, KindRule]
    revokers: tuple[str, ...]
    revocation_threshold: int
    log: str
    witnesses: tuple[str, ...] = ()
    minimum_witnesses: int = 0
    endorsement: Mapping[str, SignerRule] = field(default_factory=dict)
    override: SignerRule | None = None
    status: StatusRule | None = None
    keyless: Mapping[str, Keyless] = field(default_factory=dict)
    _loaded: dict[str, tuple[str, SignatureVerifier]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _rules: dict[str, SignerRule] = field(default_factory=dict, init=False, repr=False, compare=False)
    _digest: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        VerifierKey.parse(self.log)
        for name, raw in self.keys.items():
            if not NAME.fullmatch(name) or len(raw) != 32:
                raise FormatError(
                    f"policy key {name!r}: a name of [a-z0-9._-] and 32 bytes in base64 are needed"
                )
            key = Ed25519PublicKey.from_public_bytes(raw)
            self._loaded[name] = (key_id(key), key)
        if len(set(self.keys.values())) != len(self.keys):
            raise FormatError("two names in the policy have the same key, which would count twice")
        self._load_keyless()
        self._collect_rules()
        for purpose, rule in self._rules.items():
            self._check_signers(rule.signers, rule.threshold, purpose)
        self._check_kinds()
        self._check_roles()
        self._check_witnesses()

    def _load_keyless(self) -> None:
        for name, who in self.keyless.items():
            if not NAME.fullmatch(name) or name in self.keys or not who.identity or not who.issuer:
                raise FormatError(
                    f"keyless {name!r}: a name of its own, an identity and an issuer are needed"
                )
            self._loaded[name] = (who.id, who)
        if len({identifier for identifier, _ in self._loaded.values()}) != len(self._loaded):
            raise FormatError("two names in the policy are the same identity, which would count twice")

    def _collect_rules(self) -> None:
        for kind, rule in self.kinds.items():
            self._rules[f"kind {kind}"] = SignerRule(rule.signers, rule.threshold)
        self._rules["revocation"] = SignerRule(self.revokers, self.revocation_threshold)
        for label, who in self.endorsement.items():
            self._rules[f"endorsement {label}"] = who
        if self.override is not None:
            self._rules["override"] = self.override
        if self.status is not None:
            self._rules["status"] = SignerRule(self.status.signers, self.status.threshold)

    def _check_kinds(self) -> None:
        for kind, rule in self.kinds.items():
            if kind not in KINDS:
                raise FormatError(f"the policy has a rule for {kind!r}, which is no kind")
            if not 0 < rule.max_tokens <= MAX_TOKENS or not 0 < rule.max_age_days <= MAX_AGE_DAYS:
                raise FormatError(
                    f"kind {kind}: max_tokens must be 1 to {MAX_TOKENS}, max_age_days 1 to {MAX_AGE_DAYS}"
                )
            for model in rule.models:
                check_digest(model, f"kind {kind}: a model")
            if rule.on_revoke not in get_args(OnRevoke):
                raise FormatError(f"kind {kind}: on_revoke must be {' or '.join(get_args(OnRevoke))}")

    def _check_roles(self) -> None:
        for label in self.endorsement:
            if not NAME.fullmatch(label):
                raise FormatError(f"the policy has an endorsement of {label[:80]!r}, which is no taint label")
        overriding = set() if self.override is None else set(self.override.signers)
        both = overriding.intersection(name for rule in self.kinds.values() for name in rule.signers)
        if both:
            raise FormatError(
                f"override: {', '.join(sorted(both))} signs anchors too; the keys that override must be others"
            )
        if self.status is not None and not 0 < self.status.max_age_seconds <= MAX_STATUS_AGE:
            raise FormatError(f"status: max_age_seconds must be 1 to {MAX_STATUS_AGE}")

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
        unknown = [name for name in signers if name not in self._loaded]
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

    @property
    def signer_rules(self) -> Mapping[str, SignerRule]:
        """Who signs what, by purpose: `kind K`, `revocation`, `endorsement L`, `override`, `status`."""
        return self._rules

    def endorsing(self, anchor: str, labels: Sequence[str]) -> str:
        """What can be done about an anchor's labels that its kind forbids: the command, or that nobody may endorse them."""
        nobody = [label for label in labels if label not in self.endorsement]
        if nobody:
            return f"The policy lets nobody endorse {', '.join(nobody)}: it has no table [endorsement.{nobody[0]}]"
        options = " ".join(f"--label {label}" for label in labels)
        return f"Have it endorsed: fieldprint anchor endorse {anchor} {options}"

    def trusted(self, names: tuple[str, ...] | None = None) -> dict[str, SignatureVerifier]:
        """Key id to what checks a signature, of these names or of all."""
        return dict(self._loaded[name] for name in (self._loaded if names is None else names))

    def name_of(self, identifier: str) -> str:
        """The name of the key or identity with this id."""
        return next(name for name, (known, _) in self._loaded.items() if known == identifier)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of `to_bytes()`: equal policies have equal ones, however their files were written."""
        if not self._digest:
            self._digest.append(sha256(self.to_bytes()).hexdigest())
        return self._digest[0]

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
            lines += [f"adds_taint = {_list(rule.adds_taint)}"] if rule.adds_taint else []
            lines += [f"models = {_list(rule.models)}"] if rule.models else []
            lines += [f"on_revoke = {_text(rule.on_revoke)}"] if rule.on_revoke != "stop" else []
        lines += _role("revocation", self.revokers, self.revocation_threshold)
        for label, who in sorted(self.endorsement.items()):
            lines += _role(f"endorsement.{_text(label)}", who.signers, who.threshold)
        if self.override is not None:
            lines += _role("override", self.override.signers, self.override.threshold)
        if self.status is not None:
            lines += _role("status", self.status.signers, self.status.threshold)
            lines += [f"max_age_seconds = {self.status.max_age_seconds}"]
        for name, keyless in sorted(self.keyless.items()):
            lines += [
                "",
                f'[keyless."{name}"]',
                f"identity = {_text(keyless.identity)}",
                f"issuer = {_text(keyless.issuer)}",
                f'trusted_root = "{base64.b64encode(keyless.trusted_root).decode()}"',
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
        endorsement = fields.pop("endorsement", {})
        override, status = fields.pop("override", None), fields.pop("status", None)
        keyless = fields.pop("keyless", {})
        check_keys(fields, {"keys", "kinds", "log", "revocation"}, "the policy")
        check_keys(witnesses, {"keys", "minimum"}, "the policy's witnesses")
        check_keys(fields["revocation"], {"signers", "threshold"}, "the policy's revocation")
        if not all(
            isinstance(table, dict) for table in (fields["keys"], fields["kinds"], endorsement, keyless)
        ):
            raise FormatError("the policy's keys, kinds, endorsement and keyless must be tables")
        return cls(
            keys={name: decode_base64(text, f"policy key {name}") for name, text in fields["keys"].items()},
            kinds={kind: _rule(kind, rule) for kind, rule in fields["kinds"].items()},
            revokers=_names(fields["revocation"]["signers"]),
            revocation_threshold=_integer(fields["revocation"]["threshold"]),
            log=str(fields["log"]),
            witnesses=_texts(witnesses["keys"]),
            minimum_witnesses=_integer(witnesses["minimum"]),
            endorsement={
                label: _signers(f"endorsement of {label}", who) for label, who in endorsement.items()
            },
            override=None if override is None else _signers("override", override),
            status=None if status is None else _status(status),
            keyless={name: _keyless(name, who) for name, who in keyless.items()},
        )


def _rule(kind: str, rule: Any) -> KindRule:
    keys = {"signers", "threshold", "max_tokens", "max_age_days", "forbidden_taint"}
    given: dict[str, Any] = {"adds_taint": [], "models": [], "on_revoke": "stop"}
    if isinstance(rule, dict):
        given |= {name: value for name, value in rule.items() if name in given}
        rule = {name: value for name, value in rule.items() if name not in given}
    check_keys(rule, keys, f"the policy's kind {kind}, besides {', '.join(given)},")
    return KindRule(
        _names(rule["signers"]),
        _integer(rule["threshold"]),
        _integer(rule["max_tokens"]),
        _integer(rule["max_age_days"]),
        _names(rule["forbidden_taint"]),
        _names(given["adds_taint"]),
        _texts(given["models"]),
        given["on_revoke"],
    )


def _signers(what: str, rule: Any) -> SignerRule:
    check_keys(rule, {"signers", "threshold"}, f"the policy's {what}")
    return SignerRule(_names(rule["signers"]), _integer(rule["threshold"]))


def _keyless(name: str, who: Any) -> Keyless:
    check_keys(who, {"identity", "issuer", "trusted_root"}, f"the policy's keyless {name}")
    identity, issuer = _texts([who["identity"], who["issuer"]])
    return Keyless(identity, issuer, decode_base64(who["trusted_root"], f"the trusted root of {name}"))


def _status(rule: Any) -> StatusRule:
    check_keys(rule, {"signers", "threshold", "max_age_seconds"}, "the policy's status")
    return StatusRule(_names(rule["signers"]), _integer(rule["threshold"]), _integer(rule["max_age_seconds"]))


def _role(name: str, signers: tuple[str, ...], threshold: int) -> list[str]:
    return ["", f"[{name}]", f"signers = {_list(signers)}", f"threshold = {threshold}"]


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(x, str) and NAME.fullmatch(x) for x in value):
        raise FormatError("the policy needs a list of names where signers or taint labels stand")
    return tuple(value)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise FormatError("the policy needs a list of texts where keys of witnesses or models stand")
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
