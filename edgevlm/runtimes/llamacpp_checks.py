"""What llama.cpp takes for granted of a file: where it is wrong, the process would end.

Its reader and its loader refuse most broken files by themselves. These are the gaps that
files with flipped bytes have shown.
"""

from __future__ import annotations

import math
from itertools import product

from edgevlm.runtimes.llamacpp_header import GgufHeader

_MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
_TOKENS = "tokenizer.ggml.tokens"
_EMBEDDINGS = "token_embd.weight"
_VISION = "clip.vision"
_PROJECTOR = "mm.model.fc.weight"
_PATCHES = "v.patch_embd.weight"
# Of enum ggml_type: F32, F16, Q8_0 and BF16. Integers and float64 are no factors of a product.
_FACTORS = (0, 1, 8, 30)
# What a block has in every layer or in none, whatever its kind.
_IN_EACH_BLOCK = ("ln1", "ln2", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_out", "ffn_down")


def check_decoder(header: GgufHeader) -> None:
    """Raises ModelCorrupt for numbers out of bounds and a vocabulary with one token twice."""
    header.check_extents()
    arch = header.string("general.architecture")
    for norm in ("layer_norm_rms", "layer_norm"):
        header.check_epsilon(f"{arch}.attention.{norm}_epsilon")
    layers = f"{arch}.block_count"
    if header.count(layers) > _MOST_LAYERS:
        raise header.corrupt(f"{layers} is above {_MOST_LAYERS}")
    named = [token for token in header.strings(_TOKENS) if token]
    if len(set(named)) != len(named):
        raise header.corrupt(f"{_TOKENS} has a token twice")


def check_adapter(header: GgufHeader) -> None:
    """Raises ModelCorrupt for a LoRA with keys of other types than they should be, or with what
    is no matrix. Which matrices fit is between llama.cpp and the file."""
    header.check_extents()
    for key in ("general.type", "general.architecture", "adapter.type"):
        header.string(key)
    header.check_epsilon("adapter.lora.alpha")
    tensors = header.tensors()
    for name in tensors:
        if header.kind(name) not in _FACTORS or header.shape(name)[:2] != (1, 1):
            raise header.corrupt(f"{name} is no matrix that can be multiplied")
    a, b = f"{_EMBEDDINGS}.lora_a", f"{_EMBEDDINGS}.lora_b"
    # The one pair whose ranks llama.cpp does not compare.
    if {a, b} <= tensors and header.shape(a)[-1] != header.shape(b)[-1]:
        raise header.corrupt(f"{a} and {b} are not of one rank")


def check_tower(header: GgufHeader) -> None:
    """Raises ModelCorrupt for an mmproj that contradicts itself in what all kinds share.

    What a kind has of its own is between llama.cpp and the file.
    """
    header.check_extents()
    header.check_epsilon(f"{_VISION}.attention.layer_norm_epsilon")
    size = header.count(f"{_VISION}.embedding_length")
    patch = header.count(f"{_VISION}.patch_size")
    if size % header.count(f"{_VISION}.attention.head_count"):
        raise header.corrupt("its sizes contradict one another")
    tensors = header.tensors()
    # A convolution or a product: the shapes differ, the count of numbers does not.
    if _PATCHES in tensors and math.prod(header.shape(_PATCHES)) != size * 3 * patch**2:
        raise header.corrupt(f"{_PATCHES} is not of its sizes")
    blocks = header.count(f"{_VISION}.block_count")
    layers = range(min(blocks, len(tensors)))
    for part in product(_IN_EACH_BLOCK, ("weight", "bias")):
        name = ".".join(part)
        if sum(f"v.blk.{layer}.{name}" in tensors for layer in layers) not in (0, blocks):
            raise header.corrupt(f"not each of {blocks} blocks has {name}")


def check_idefics3(header: GgufHeader) -> int:
    """The width of the embeddings of an mmproj of this kind, which has every tensor that its
    numbers speak of. Raises ModelCorrupt."""
    header.check_extents()
    header.check_epsilon(f"{_VISION}.attention.layer_norm_epsilon")
    size = header.count(f"{_VISION}.embedding_length")
    inner = header.count(f"{_VISION}.feed_forward_length")
    patch = header.count(f"{_VISION}.patch_size")
    heads = header.count(f"{_VISION}.attention.head_count")
    shuffle = header.count(f"{_VISION}.projector.scale_factor")
    side = header.count(f"{_VISION}.image_size") // patch
    if size % heads or side == 0 or side % shuffle or shuffle < 2:
        raise header.corrupt("its sizes contradict one another")
    shapes = {
        "v.patch_embd.weight": (size, 3, patch, patch),
        "v.position_embd.weight": (side * side, size),
        **dict.fromkeys(("v.patch_embd.bias", "v.post_ln.weight", "v.post_ln.bias"), (size,)),
    }
    for layer in range(header.count(f"{_VISION}.block_count")):
        blk = f"v.blk.{layer}"
        # Files of early 2025, the published ones among them, have the two names the other way
        # round; llama.cpp goes by their shapes.
        swapped = header.shape(f"{blk}.ffn_up.weight")[-2:] == (size, inner)
        widths = (size, inner) if swapped else (inner, size)
        shapes |= {f"{blk}.{name}": shape for name, shape in _layer_shapes(size, *widths).items()}
        # As it goes, so that a count of billions ends with the first layer that is missing.
        header.check_shapes(shapes)
        shapes = {}
    width = header.shape(_PROJECTOR)[-2]
    header.check_shapes({_PROJECTOR: (width, size * shuffle**2)})
    return width


def _layer_shapes(size: int, up: int, down: int) -> dict[str, tuple[int, ...]]:
    """`up` and `down` are how many numbers these products give."""
    products = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (size, size)),
        "ffn_up": (up, down),
        "ffn_down": (down, up),
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"{norm}.{part}": (size,) for norm in ("ln1", "ln2") for part in ("weight", "bias")
    }
    for name, shape in products.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes
