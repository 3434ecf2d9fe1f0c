"""A Sigstore of the tests: a certificate authority, a certificate log, a signature log, and bundles that they vouch for.

Everything is made as the real services make it, with keys of its own: certificates as Fulcio's, their promise of RFC
6962, entries, promises, inclusion proofs and checkpoints as Rekor's (version 1).
"""

import base64
import json
import struct
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fieldprint.anchor.dsse import pae
from fieldprint.tlog import leaf_hash
from tests.tlog.naive import Tree, split

SIGNED = datetime(2026, 11, 24, 12, tzinfo=UTC)
IDENTITY, ISSUER = "owner@example.org", "https://accounts.example.org"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
ISSUER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
PROMISES_OID = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
SHA256 = ec.ECDSA(hashes.SHA256())


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class World:
    """The services' keys, and the authority's certificate."""

    authority: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    promises: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    log: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    def root(self) -> x509.Certificate:
        """The authority's own certificate."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        public = self.authority.public_key()
        return (
            x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=public, serial_number=1)
            .not_valid_before(SIGNED - timedelta(days=365))
            .not_valid_after(SIGNED + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self.authority, hashes.SHA256())
        )

    def trusted_root(self) -> bytes:
        """The file that a verifier holds."""
        since = {"start": "2026-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey, url: str) -> dict[str, Any]:
            public = {"rawBytes": b64(der(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": since}
            identifier = {"keyId": b64(sha256(der(key)).digest())}
            return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": public, "logId": identifier}

        certificate = {"rawBytes": b64(self.root().public_bytes(Encoding.DER))}
        authority = {
            "subject": {"organization": "test", "commonName": "test authority"},
            "uri": "https://fulcio.example.org",
            "certChain": {"certificates": [certificate]},
            "validFor": since,
        }
        fields = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log, "https://rekor.example.org")],
            "certificateAuthorities": [authority],
            "ctlogs": [log(self.promises, "https://ctfe.example.org")],
            "timestampAuthorities": [],
        }
        return json.dumps(fields).encode()

    def certificate(
        self,
        key: ec.EllipticCurvePrivateKey,
        *,
        identity: str = IDENTITY,
        issuer: str = ISSUER,
        start: datetime = SIGNED,
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CODE_SIGNING,
        promised: bool = True,
    ) -> x509.Certificate:
        """A certificate of ten minutes, with the certificate log's promise in it."""
        root = self.root()
        signs = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        name = x509.UniformResourceIdentifier if "://" in identity else x509.RFC822Name
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(root.subject)
            .public_key(key.public_key())
            .serial_number(7)
            .not_valid_before(start)
            .not_valid_after(start + timedelta(minutes=10))
            .add_extension(signs, critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(identifier, critical=False)
            .add_extension(x509.SubjectAlternativeName([name(identity)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(ISSUER_OID, issuer.encode()), critical=False)
        )
        bare = builder.sign(self.authority, hashes.SHA256())
        if not promised:
            return bare
        extension = x509.UnrecognizedExtension(PROMISES_OID, self._promise(bare))
        return builder.add_extension(extension, critical=False).sign(self.authority, hashes.SHA256())

    def _promise(self, certificate: x509.Certificate) -> bytes:
        """A list of one signed certificate timestamp, RFC 6962 sections 3.2 and 3.3."""
        time = int(SIGNED.timestamp() * 1000)
        body = certificate.tbs_certificate_bytes
        entry = sha256(der(self.authority)).digest() + len(body).to_bytes(3, "big") + body
        signature = self.promises.sign(struct.pack(">BBQH", 0, 0, time, 1) + entry + b"\0\0", SHA256)
        promise = b"\0" + sha256(der(self.promises)).digest() + struct.pack(">QH", time, 0)
        promise += b"\x04\x03" + struct.pack(">H", len(signature)) + signature
        listed = struct.pack(">HH", len(promise) + 2, len(promise)) + promise
        assert len(listed) < 256
        return (
            b"\x04" + (bytes([len(listed)]) if len(listed) < 128 else b"\x81" + bytes([len(listed)])) + listed
        )

    def bundle(
        self, payload: bytes, kind: str = PAYLOAD_TYPE, time: datetime = SIGNED, **how: Any
    ) -> dict[str, Any]:
        """A bundle over the payload; `how` changes the certificate."""
        key = new_key()
        certificate = self.certificate(key, **how)
        signature = b64(key.sign(pae(kind, payload), SHA256))
        envelope = {"payload": b64(payload), "payloadType": kind, "signatures": [{"sig": signature}]}
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": b64(certificate.public_bytes(Encoding.DER))},
                "tlogEntries": [self.entry(envelope, certificate, time)],
            },
            "dsseEnvelope": envelope,
        }

    def entry(
        self, envelope: dict[str, Any], certificate: x509.Certificate, time: datetime
    ) -> dict[str, Any]:
        """The log's entry, its promise, and its proof in a log of five."""
        payload_hash = sha256(base64.b64decode(envelope["payload"])).hexdigest()
        verifier = b64(certificate.public_bytes(Encoding.PEM))
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": sha256(rfc8785.dumps(envelope)).hexdigest()},
            "payloadHash": {"algorithm": "sha256", "value": payload_hash},
            "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": verifier}],
        }
        body = rfc8785.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        identifier, seconds, index = sha256(der(self.log)).digest(), int(time.timestamp()), 3
        promised = {
            "body": b64(body),
            "integratedTime": seconds,
            "logID": identifier.hex(),
            "logIndex": index,
        }
        tree = Tree([leaf_hash(body if i == index else b"other %d" % i) for i in range(5)])
        text = f"rekor.example.org - 1\n5\n{b64(tree.root())}\n"
        line = identifier[:4] + self.log.sign(text.encode(), SHA256)
        proof = {
            "logIndex": str(index),
            "rootHash": b64(tree.root()),
            "treeSize": "5",
            "hashes": [b64(value) for value in _path(tree, index, 0, 5)],
            "checkpoint": {"envelope": f"{text}\n\u2014 rekor.example.org {b64(line)}\n"},
        }
        return {
            "logIndex": str(index),
            "logId": {"keyId": b64(identifier)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(seconds),
            "inclusionPromise": {"signedEntryTimestamp": b64(self.log.sign(rfc8785.dumps(promised), SHA256))},
            "inclusionProof": proof,
            "canonicalizedBody": b64(body),
        }

    def with_other(self, name: str) -> "World":
        """The same services, one of them with another key."""
        return replace(self, **{name: new_key()})


def _path(tree: Tree, index: int, start: int, stop: int) -> list[bytes]:
    """PATH of RFC 9162 section 2.1.3.1 over leaf hashes."""
    if stop - start == 1:
        return []
    middle = start + split(stop - start)
    if index < middle:
        return [*_path(tree, index, start, middle), tree.hash(middle, stop)]
    return [*_path(tree, index, middle, stop), tree.hash(start, middle)]
