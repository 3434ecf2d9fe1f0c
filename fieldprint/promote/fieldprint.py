"""The fieldprint: the quantized K/V of one anchor under one model, its root, and the file that carries it."""

import errno
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fieldprint import blake3
from fieldprint.anchor import FieldprintRecord
from fieldprint.attention.paged import MAX_ANCHOR_TOKENS
from fieldprint.decoder import Decoder
from fieldprint.errors import CapacityError, FieldprintError, FormatError
from fieldprint.quantize import MAX_EXPONENT, MIN_EXPONENT, QUANTIZER, dequantize, quantize

FORMAT = "fieldprint/v1"
PAGE_SIZE = 16  # tokens of a hashed page; the serving pool may use another size


@dataclass(frozen=True, slots=True, eq=False)
class Fieldprint:
    """The codes of an anchor's K/V and the exponents of their steps.

    codes: int8 [num_layers, 2 (K, V), A, num_kv_heads, head_dim], within [-127, 127].
    exponents: int8 [num_layers, 2, num_kv_heads, head_dim], within [-24, 9].
    """

    codes: Tensor
    exponents: Tensor

    def __post_init__(self) -> None:
        if self.codes.dim() != 5 or self.codes.shape[1] != 2 or self.codes.dtype != torch.int8:
            raise FormatError("codes must be int8 [num_layers, 2, tokens, num_kv_heads, head_dim]")
        layers, _, tokens, heads, dim = self.codes.shape
        if self.exponents.shape != (layers, 2, heads, dim) or self.exponents.dtype != torch.int8:
            raise FormatError("exponents must be int8 [num_layers, 2, num_kv_heads, head_dim]")
        if 0 in self.codes.shape or tokens > MAX_ANCHOR_TOKENS:
            raise FormatError(
                f"codes {list(self.codes.shape)} hold nothing, or over {MAX_ANCHOR_TOKENS} tokens"
            )
        if bool((self.codes == -128).any()):
            raise FormatError("codes hold -128; codes are within [-127, 127]")
        if bool(((self.exponents < MIN_EXPONENT) | (self.exponents > MAX_EXPONENT)).any()):
            raise FormatError(f"exponents must be within [{MIN_EXPONENT}, {MAX_EXPONENT}]")

    @property
    def num_tokens(self) -> int:
        """A."""
        return self.codes.shape[2]

    def page_bytes(self, layer: int, part: int, page: int) -> bytes:
        """The bytes that one leaf hashes: a header, the exponents of the layer's K (part 0) or V (part 1), the codes.

        The header is six little-endian uint32: layer, part, page, tokens of the page, num_kv_heads, head_dim.
        """
        codes = self.codes[layer, part, page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
        header = struct.pack("<6I", layer, part, page, *codes.shape)
        return header + self.exponents[layer, part].numpy().tobytes() + codes.contiguous().numpy().tobytes()

    def root(self) -> str:
        """Hex root over the page digests, ordered by layer, then K before V, then page."""
        layers, parts, tokens = self.codes.shape[:3]
        pages = -(-tokens // PAGE_SIZE)
        return blake3.tree_root(
            [
                blake3.digest(self.page_bytes(layer, part, page))
                for layer in range(layers)
                for part in range(parts)
                for page in range(pages)
            ]
        ).hex()

    def values(self, dtype: torch.dtype) -> Tensor:
        """K/V as attention reads them, [num_layers, 2, A, num_kv_heads, head_dim], exact in `dtype`."""
        layers, parts, tokens, heads, dim = self.codes.shape
        flat = dequantize(
            self.codes.reshape(layers, parts, tokens, heads * dim),
            self.exponents.reshape(layers, parts, -1),
            dtype,
        )
        return flat.view(layers, parts, tokens, heads, dim)

    def record(self, *, model: str, form: str, token_ids: Sequence[int]) -> FieldprintRecord:
        """What the artifact says of this fieldprint."""
        layers, _, tokens, heads, dim = self.codes.shape
        return FieldprintRecord(
            model=model,
            form=form,
            num_tokens=tokens,
            token_ids_sha256=token_ids_digest(token_ids),
            num_layers=layers,
            num_kv_heads=heads,
            head_dim=dim,
            page_size=PAGE_SIZE,
            quantizer=QUANTIZER,
            root=self.root(),
        )

    def save(self, path: Path) -> None:
        """Write the file that another machine loads instead of recomputing: safetensors with `codes`, `exponents`.

        Raises:
            CapacityError: the disk is full. FieldprintError: the folder cannot be written. No half-written file is left.
        """
        data = save(
            {"codes": self.codes, "exponents": self.exponents}, {"format": FORMAT, "root": self.root()}
        )
        part = path.with_name(path.name + ".part")
        try:
            part.write_bytes(data)
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise (CapacityError if full else FieldprintError)(
                f"{path} cannot be written: {error.strerror}",
                remedy="Free disk space" if full else "Check the folder",
            ) from error

    @classmethod
    def load(cls, path: Path) -> "Fieldprint":
        """The fieldprint in the file, whose root still has to be compared with the signed one.

        Raises:
            FormatError: the file is missing, truncated, or holds anything else.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                names = set(file.keys())
                if metadata.get("format") != FORMAT or names != {"codes", "exponents"}:
                    raise FormatError(
                        f"{path} is not a fieldprint file: {json.dumps(metadata)}, {sorted(names)}"
                    )
                loaded = cls(file.get_tensor("codes"), file.get_tensor("exponents"))
        except (SafetensorError, OSError) as error:
            raise FormatError(
                f"{path} is not a fieldprint file: {error}", remedy="Copy or compute it again"
            ) from error
        if metadata.get("root") != loaded.root():
            raise FormatError(
                f"{path}: the tensors do not have the root that the file names", remedy="Copy it again"
            )
        return loaded


def compute_fieldprint(decoder: Decoder, token_ids: Sequence[int], *, first_position: int = 0) -> Fieldprint:
    """The fieldprint of `token_ids`, realized on the canonical path (float32, one pass, from `first_position` on).

    Raises:
        CapacityError: more than 512 tokens.
        ValueError: the decoder does not compute in float32, or its K/V cannot be quantized.
    """
    if len(token_ids) > MAX_ANCHOR_TOKENS:
        raise CapacityError(
            f"the anchor has {len(token_ids)} tokens; 1 to {MAX_ANCHOR_TOKENS} are possible",
            remedy="Shorten its text",
        )
    k, v = decoder.realize(list(token_ids), first_position=first_position)
    kv = torch.stack([k, v], 1)  # [num_layers, 2, A, num_kv_heads, head_dim]
    layers, parts, tokens, heads, dim = kv.shape
    codes, exponents = quantize(kv.reshape(layers, parts, tokens, heads * dim))
    return Fieldprint(codes.view(kv.shape), exponents.view(layers, parts, heads, dim))


def token_ids_digest(token_ids: Sequence[int]) -> str:
    """Hex SHA-256 of the ids as little-endian int32."""
    return sha256(struct.pack(f"<{len(token_ids)}i", *token_ids)).hexdigest()
