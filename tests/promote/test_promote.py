"""Promotion: every numbered check fails where it should, files are checked, pages are rebuilt bit for bit."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import save  # noqa: E402

from fieldprint.adapters.transformers import LoadedModel, load_model  # noqa: E402
from fieldprint.blake3.naive import naive_digest, naive_root  # noqa: E402
from fieldprint.errors import CapacityError, FormatError, IntegrityError, VerificationError  # noqa: E402
from fieldprint.kvcache import PagePool, SlotHasher  # noqa: E402
from fieldprint.pipeline import anchor_tokens, fieldprint_of  # noqa: E402
from fieldprint.promote import Fieldprint, compute_fieldprint, promote_anchor  # noqa: E402
from fieldprint.verify import VerifiedAnchor, verify_anchor  # noqa: E402
from tests.signing import make_policy, sign_text, signed_anchor  # noqa: E402

TEXT = "Your codename is Falcon. You live in Oslo. Never tell the password."


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LoadedModel:
    return load_model(model_folder)


@pytest.fixture(scope="module")
def anchor(model: LoadedModel) -> tuple[VerifiedAnchor, Sequence[int]]:
    return signed_anchor(model, TEXT)


@pytest.fixture
def pool(model: LoadedModel) -> PagePool:
    return PagePool(model.decoder.page_layout(16), 12)


def small(tokens: int = 20) -> Fieldprint:
    torch.manual_seed(tokens)
    codes = torch.randint(-127, 128, (2, 2, tokens, 1, 3), dtype=torch.int8)
    return Fieldprint(codes, torch.randint(-24, 10, (2, 2, 1, 3), dtype=torch.int8))


def test_promotion_pins_exactly_the_quantized_values(
    model: LoadedModel, pool: PagePool, anchor: tuple[VerifiedAnchor, Sequence[int]]
) -> None:
    pinned = promote_anchor(anchor[0], model.decoder, pool, anchor[1])
    assert all(pool.is_pinned(page) for page in pinned.pages)
    injection = pinned.injection(9)
    values = pinned.fieldprint.values(torch.float32)
    assert torch.equal(injection.k, values[:, 0].transpose(1, 2))
    assert torch.equal(injection.v, values[:, 1].transpose(1, 2))
    k, v = model.decoder.realize(list(anchor[1]))
    steps = torch.pow(2.0, pinned.fieldprint.exponents.float()).unsqueeze(2)
    assert bool(((torch.stack([k, v], 1) - values).abs() <= steps / 2).all())
    pinned.release()
    pool.check_conservation([])


def test_realizing_twice_gives_the_same_root(
    model: LoadedModel, anchor: tuple[VerifiedAnchor, Sequence[int]]
) -> None:
    threads = torch.get_num_threads()
    roots = set()
    for count in (1, 2):
        torch.set_num_threads(count)
        roots.add(compute_fieldprint(model.decoder, anchor[1]).root())
    torch.set_num_threads(threads)
    assert len(roots) == 1


def test_root_equals_the_naive_tree() -> None:
    fieldprint = small()
    pages = [fieldprint.page_bytes(i, part, page) for i in range(2) for part in range(2) for page in range(2)]
    assert fieldprint.root() == naive_root([naive_digest(page) for page in pages]).hex()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2 * 2 * 20 * 3 - 1), st.integers(1, 100))
def test_any_changed_code_changes_the_root(index: int, change: int) -> None:
    fieldprint = small()
    codes = fieldprint.codes.clone()
    flat = codes.view(-1)
    flat[index] = (int(flat[index]) + 127 + change) % 255 - 127
    assert Fieldprint(codes, fieldprint.exponents).root() != fieldprint.root()


def test_a_file_round_trips_and_any_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    small().save(path)
    assert Fieldprint.load(path).root() == small().root()
    data = path.read_bytes()
    for size in (0, 4, 50, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError, match="fieldprint file"):
            Fieldprint.load(path)
    with pytest.raises(FormatError):
        Fieldprint.load(tmp_path / "missing")


def test_a_changed_tensor_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    small().save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError):
        Fieldprint.load(path)


@pytest.mark.parametrize(
    ("codes", "exponents"),
    [
        ((0, 2, 5, 1, 1), (0, 2, 1, 1)),
        ((10**9, 2, 512, 0, 0), (10**9, 2, 0, 0)),
        ((1, 2, 513, 1, 1), (1, 2, 1, 1)),
    ],
)
def test_a_file_of_impossible_sizes_is_refused(
    tmp_path: Path, codes: tuple[int, ...], exponents: tuple[int, ...]
) -> None:
    tensors = {
        "codes": torch.zeros(codes, dtype=torch.int8),
        "exponents": torch.zeros(exponents, dtype=torch.int8),
    }
    (tmp_path / "f").write_bytes(save(tensors, {"format": "fieldprint/v1", "root": "00" * 32}))
    with pytest.raises(FormatError, match="hold nothing, or over 512"):
        Fieldprint.load(tmp_path / "f")


def test_the_file_of_the_format_page_loads(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/formats/fieldprint.md").read_text()
    blocks = dict(re.findall(r"```[a-z]+ ([a-z]+)\n(.*?)```", page, re.DOTALL))
    (tmp_path / "f").write_bytes(bytes.fromhex("".join(blocks["file"].split())))
    assert Fieldprint.load(tmp_path / "f").root() == blocks["root"].strip()


def test_check_1_needs_a_record_and_a_verified_anchor(
    model: LoadedModel, pool: PagePool, anchor: tuple[VerifiedAnchor, Sequence[int]]
) -> None:
    with pytest.raises(VerificationError) as caught:
        promote_anchor(replace(anchor[0], record=None), model.decoder, pool, anchor[1])
    assert caught.value.check == 1
    with pytest.raises(TypeError, match="verify_anchor"):
        promote_anchor(b"signed bytes", model.decoder, pool, anchor[1])  # type: ignore[arg-type]


def test_check_1_refuses_a_fieldprint_that_lies_before_position_0(
    model: LoadedModel, pool: PagePool, tmp_path: Path
) -> None:
    """Its own tokens and its own file change nothing: these pages are rotated for 0..A-1."""
    owner, form = Ed25519PrivateKey.generate(), "chat-system-before"
    signed = sign_text(model, TEXT, owner, form)
    verified = verify_anchor(
        signed,
        make_policy(owner),
        now=datetime.now(UTC),
        registry=None,
        model=model.digest,
        before=True,
    )
    fieldprint, record = fieldprint_of(model, TEXT, form)
    assert verified.record == record
    fieldprint.save(tmp_path / "f")
    for file in (None, tmp_path / "f"):
        with pytest.raises(VerificationError, match="like vLLM") as caught:
            promote_anchor(
                verified, model.decoder, pool, anchor_tokens(model, verified), fieldprint_file=file
            )
        assert caught.value.check == 1
    pool.check_conservation([])


def test_check_2_other_tokens(
    model: LoadedModel, pool: PagePool, anchor: tuple[VerifiedAnchor, Sequence[int]]
) -> None:
    for tokens in (anchor[1][:-1], [*anchor[1][:-1], 5]):
        with pytest.raises(VerificationError) as caught:
            promote_anchor(anchor[0], model.decoder, pool, tokens)
        assert caught.value.check == 2


def test_check_3_other_sizes_and_another_dtype(
    model: LoadedModel, pool: PagePool, anchor: tuple[VerifiedAnchor, Sequence[int]]
) -> None:
    verified, tokens = anchor
    assert verified.record is not None
    other = replace(verified, record=replace(verified.record, num_layers=29))
    hashed = replace(verified, record=replace(verified.record, page_size=32))
    half = PagePool(replace(pool.layout, dtype=torch.bfloat16), 12)
    for candidate, target in ((other, pool), (hashed, pool), (verified, half)):
        with pytest.raises(VerificationError) as caught:
            promote_anchor(candidate, model.decoder, target, tokens)
        assert caught.value.check == 3


def test_check_4_another_root(
    model: LoadedModel, pool: PagePool, anchor: tuple[VerifiedAnchor, Sequence[int]], tmp_path: Path
) -> None:
    other = compute_fieldprint(model.decoder, model.encode("Something else entirely."))
    other.save(tmp_path / "other")
    with pytest.raises(VerificationError) as caught:
        promote_anchor(anchor[0], model.decoder, pool, anchor[1], fieldprint_file=tmp_path / "other")
    assert caught.value.check == 4
    pool.check_conservation([])


def test_check_5_memory_that_does_not_keep_what_is_written(
    model: LoadedModel,
    pool: PagePool,
    anchor: tuple[VerifiedAnchor, Sequence[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = SlotHasher.now

    def worn_out(self: SlotHasher, slots: Any) -> Any:
        pool.slots()[slots[3], 3, 1, 0, 0] = 7.0
        return whole(self, slots)

    monkeypatch.setattr(SlotHasher, "now", worn_out)
    with pytest.raises(VerificationError) as caught:
        promote_anchor(anchor[0], model.decoder, pool, anchor[1])
    assert caught.value.check == 5
    pool.check_conservation([])


def test_a_flipped_bit_is_seen_and_rewritten(
    model: LoadedModel, pool: PagePool, anchor: tuple[VerifiedAnchor, Sequence[int]]
) -> None:
    pinned = promote_anchor(anchor[0], model.decoder, pool, anchor[1])
    pool.storage.view(torch.uint8)[7, 0, pinned.pages[1], 1, 2, 33] ^= 1
    assert pinned.damaged() == [1]
    pinned.rewrite()
    assert pinned.damaged() == []
    pinned.fieldprint.codes[0, 0, 0, 0, 0] ^= 1
    with pytest.raises(IntegrityError, match="host memory"):
        pinned.rewrite()


def test_an_oversized_anchor_is_refused(model: LoadedModel) -> None:
    with pytest.raises(CapacityError, match="1 to 512"):
        compute_fieldprint(model.decoder, [1] * 513)


def test_no_room_for_the_anchor(model: LoadedModel, anchor: tuple[VerifiedAnchor, Sequence[int]]) -> None:
    tiny = PagePool(model.decoder.page_layout(16), 1)
    with pytest.raises(CapacityError):
        promote_anchor(anchor[0], model.decoder, tiny, anchor[1])
    tiny.check_conservation([])
