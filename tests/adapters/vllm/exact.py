"""A connector that installs K/V as they were realized, not quantized: what is left is the mechanism, which must be exact."""

from typing import Any

import torch
from safetensors.torch import load_file

from fieldprint.adapters.vllm.connector import FieldprintConnector


class ExactConnector(FieldprintConnector):
    """Reads `FILE.exact` beside the fieldprint."""

    def anchor_values(self, fieldprint: Any) -> torch.Tensor:
        (files,) = self.settings.anchors.values()
        values = load_file(files.fieldprint + ".exact")["kv"]
        assert values.shape == fieldprint.codes.shape
        return values.to(self._caches[0].dtype)
