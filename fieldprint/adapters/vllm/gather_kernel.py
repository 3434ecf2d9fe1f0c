"""The gather of `Residency.rows` on a GPU, in Triton: elements of one slot, of one layer, a program."""

import triton
import triton.language as tl


@triton.jit
def gather_kernel(
    layers, slots, offsets, out, num_layers, block_size, stride, E: tl.constexpr, BLOCK: tl.constexpr
):
    """out[slot, layer, e] = layer's memory[block * stride + offsets[slot in block, e]]; `layers` holds addresses."""
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1)
    slot = tl.load(slots + row)
    memory = tl.load(layers + layer).to(tl.pointer_type(out.dtype.element_ty))
    memory += slot // block_size * stride
    places = offsets + slot % block_size * E
    to = out + (row * num_layers + layer) * E
    for start in range(0, E, BLOCK):
        e = start + tl.arange(0, BLOCK)
        mask = e < E
        tl.store(
            to + e, tl.load(memory + tl.load(places + e, mask=mask, other=0), mask=mask, other=0.0), mask=mask
        )
