"""Signatures without a key to keep: Sigstore bundles, checked offline by the package sigstore (extra `sigstore`).

A signer proves an identity (an e-mail address, a CI workflow) to an issuer; a certificate authority binds that identity
to a key that lives for minutes; a log records the signature while the certificate was valid. Which authorities and
logs count, the trusted root says: a JSON file that the verifier holds, as Sigstore publishes one or an organisation
makes its own. Nothing is fetched.
"""

from dataclasses import dataclass
from hashlib import sha256
from types import ModuleType

import rfc8785
from cryptography.exceptions import InvalidSignature

from fieldprint.anchor.sign import PAYLOAD_TYPE
from fieldprint.errors import FieldprintError, VerificationError

STATEMENT_BEGINS = (
    f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} ".encode()
)  # of its pre-authentication encoding
MAX_BUNDLE_SIZE = 2 << 20
MAX_TRUSTED_ROOT_SIZE = 1 << 20


def verify_bundle(bundle: bytes, payload: bytes, *, identity: str, issuer: str, trusted_root: bytes) -> None:
    """Return only if the bundle is this identity's signature on the payload.

    1. Bundle and trusted root are not too large and well-formed.
    2. By the trusted root, as sigstore's `Verifier.verify_dsse` checks it: a time of signing is established by the log
       or a time stamp; the certificate chains to an authority and was valid then; a certificate log promised it; its
       subject is exactly `identity`, vouched for by exactly `issuer`; the log's entry is proved under a signed
       checkpoint and is of this envelope; the envelope's signature is the certificate's.
    3. The envelope is of type application/vnd.in-toto+json, and its payload is `payload`.

    Args:
        bundle: JSON, application/vnd.dev.sigstore.bundle, with a DSSE envelope.
        payload: the statement that must be signed, as `AnchorArtifact.to_bytes` gives it.
        identity: the certificate's subject, as owner@example.org or a workflow's URI.
        issuer: URL of who vouched for the identity.
        trusted_root: JSON, application/vnd.dev.sigstore.trustedroot.

    Raises:
        VerificationError: with the number of the check.
        FieldprintError: the package sigstore is not installed.
        ValueError: identity or issuer is empty, which would let anybody pass.
    """
    if not identity or not issuer:
        raise ValueError("identity and issuer must be given")
    if len(bundle) > MAX_BUNDLE_SIZE or len(trusted_root) > MAX_TRUSTED_ROOT_SIZE:
        raise VerificationError(1, "the Sigstore bundle or the trusted root is too large")
    models, verify = _package()
    try:
        root = models.TrustedRoot(models.trustroot_v1.TrustedRoot.from_json(trusted_root))
        parsed = models.Bundle.from_json(bundle)
    except Exception as error:  # whatever a parser of hostile bytes raises: it is not well-formed
        raise VerificationError(
            1, f"the Sigstore bundle or the trusted root is malformed: {_line(error)}"
        ) from error
    try:
        policy = verify.policy.Identity(identity=identity, issuer=issuer)
        kind, signed = verify.Verifier(trusted_root=root).verify_dsse(parsed, policy)
    except (
        Exception
    ) as error:  # an extension that is missing, another kind of key: not only sigstore's own errors
        raise VerificationError(2, f"the Sigstore bundle does not verify: {_line(error)}") from error
    if kind != PAYLOAD_TYPE or signed != payload:
        raise VerificationError(
            3, "the Sigstore bundle signs something else", remedy="Is it this anchor's bundle?"
        )


def _line(error: Exception) -> str:
    """The first line of a message, cut: it may repeat what the bundle says."""
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]


def _package() -> tuple[ModuleType, ModuleType]:
    try:
        import sigstore.models
        import sigstore.verify
    except ModuleNotFoundError as error:
        raise FieldprintError(
            "a Sigstore bundle needs the package sigstore", remedy="pip install 'fieldprint[sigstore]'"
        ) from error
    return sigstore.models, sigstore.verify


@dataclass(frozen=True, slots=True)
class Keyless:
    """An identity that signs with a Sigstore bundle in place of a signature; as trusted as whom its root names.

    In an envelope its key id is `id`, and its signature the bundle's JSON.
    """

    identity: str
    issuer: str
    trusted_root: bytes

    @property
    def id(self) -> str:
        """Hex SHA-256 of the canonical JSON {"identity":"...","issuer":"..."}."""
        return sha256(rfc8785.dumps({"identity": self.identity, "issuer": self.issuer})).hexdigest()

    def verify(self, signature: bytes, data: bytes, /) -> None:
        """Return only if the bundle signs what DSSE's encoding of a statement, `data`, holds.

        Raises:
            InvalidSignature: it does not. FieldprintError: the package sigstore is not installed.
        """
        head, _, payload = data.removeprefix(STATEMENT_BEGINS).partition(b" ")
        if not data.startswith(STATEMENT_BEGINS) or head != str(len(payload)).encode():
            raise InvalidSignature
        try:
            verify_bundle(
                signature, payload, identity=self.identity, issuer=self.issuer, trusted_root=self.trusted_root
            )
        except VerificationError as error:
            raise InvalidSignature from error
