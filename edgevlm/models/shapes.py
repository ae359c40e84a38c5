"""The sizes of a model and the bytes of its parts, from the catalog or from its own files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from edgevlm.devices.machine import this_machine
from edgevlm.devices.outlook import Sizes
from edgevlm.devices.placement import refusal
from edgevlm.devices.plan import require_fit
from edgevlm.devices.predict import predict_memory
from edgevlm.devices.shape import DecoderShape, ModelShape, VisionShape, Weights
from edgevlm.devices.target import memory_allowed
from edgevlm.engine.placement import Placement
from edgevlm.errors import EdgeVLMError, ModelCorrupt, ModelError, NotSupported
from edgevlm.families.config_files import ConfigFile
from edgevlm.families.idefics3_image import TilingSettings, tile_count
from edgevlm.models.catalog import Catalog, CatalogEntry, RuntimeFiles
from edgevlm.models.gguf import GgufFile, Value
from edgevlm.models.hub import list_files
from edgevlm.models.layouts import discover
from edgevlm.models.names import HubId
from edgevlm.models.plan import find_target
from edgevlm.models.store import Store, paths_in
from edgevlm.models.vlm_config import MODEL_TYPES, ModelConfig, read_config
from edgevlm.settings import Settings

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_SHARED = "onnx/weights.bin"  # of the built-in model: decoder and embeddings point into it
# Bytes of a weight at 16 bits, and at 4 with a scale and a bias for every 64. MLX's files hold
# both parts, and its converter leaves the vision tower at 16 unless it is told to pack it too.
_HALF, _PACKED = 2.0, 9 / 16
_LARGEST = 2**32  # files say what they like; products of such numbers still are floats


def sizes_of(name: str, store: Store) -> Sizes:
    """What is known of a model by catalog name, hub id or folder.

    Of a model of the hub that isn't here only the sizes of its files are. Raises UnknownModel.
    """
    target = find_target(name, store.catalog)
    if isinstance(target, CatalogEntry):
        return catalog_sizes(target)
    folder = target if isinstance(target, Path) else _folder_of(target, store)
    if folder is not None:
        shape = local_shape(folder)
        return Sizes(name, shape, lambda p: local_weights(folder, p, shape))
    assert isinstance(target, HubId)
    return Sizes(name, None, cache(lambda p: _listed_weights(target, p)))


def _listed_weights(hub: HubId, placement: Placement) -> Weights | None:
    """Bytes of each part as the hub lists its files, None where it can't be asked."""
    try:
        listing = list_files(hub)
        layout = discover(listing.files, str(placement), str(hub))
    except (ModelError, NotSupported):
        return None
    listed = {path: file.size or 0 for path, file in listing.files.items()}
    sizes = {role: _size(listed, path, layout.paths) for role, path in layout.roles.items()}
    return _split(sizes, dict(layout.quantization), None)


def catalog_sizes(entry: CatalogEntry) -> Sizes:
    """Placements without files count as what a conversion at 4 bits would make."""
    return Sizes(entry.name, entry.shape, lambda p: catalog_weights(entry, p))


def wanted_by_catalog(
    catalog: Catalog, usable: Callable[[Placement], bool], context: int | None
) -> dict[str, int]:
    """Bytes that each model of the catalog wants at least, in a placement that is usable."""
    wanted = {}
    for entry in catalog.entries.values():
        shape, offers = entry.shape, [p for p in entry.placements if usable(p)]
        if shape is None or not offers:
            continue
        tokens = min(context or entry.context_length, entry.context_length)
        wanted[entry.name] = min(
            predict_memory(shape, weights, placement, tokens).total
            for placement in offers
            if (weights := catalog_weights(entry, placement)) is not None
        )
    return wanted


def check_fit(
    sizes: Sizes, placement: Placement, settings: Settings, catalog: Catalog
) -> int | None:
    """The context to load with, in tokens (None: the model's own): as the settings say, or as
    long as memory allows. Raises DoesNotFit where this machine leaves too little."""
    context = settings.context_length
    return require_fit(
        sizes,
        placement,
        context,
        memory_allowed(this_machine(), placement.language),
        lambda: wanted_by_catalog(catalog, lambda p: refusal(p) is None, context),
    )


def picture_tiles(vision: VisionShape, width: int, height: int) -> int:
    """Tiles of a picture of that size in pixels, at the detail of the model's own processor."""
    if vision.longest_edge is None:
        return 1
    settings = TilingSettings(
        tile=vision.tile,
        tokens=vision.tokens,
        longest_edge=vision.longest_edge,
        split=True,
        resample=1,
        scale=1.0,
        mean=(0.0,),
        std=(1.0,),
    )
    return tile_count(settings, (width, height))


def _folder_of(hub: HubId, store: Store) -> Path | None:
    return next((v.folder for v in store.list() if v.name == str(hub)), None)


def catalog_weights(entry: CatalogEntry, placement: Placement) -> Weights | None:
    """Bytes of each part as the catalog tells them; where it has no such files, what a
    conversion would make: 4.5 bits a weight of the decoder, 16 of the vision tower."""
    files = entry.files_for(str(placement))
    if files is None:
        return _converted(entry.shape)
    bits = dict(files.quantization)
    if files.weights:
        parts = files.weights
        return Weights(
            parts["decoder"], parts.get("vision", 0), parts.get("embeddings", 0), bits=bits
        )
    if files.assemble:
        return Weights(files.disk or files.download_size, 0, bits=bits)
    return _split(_by_role(files), bits, entry.shape)


def local_weights(folder: Path, placement: Placement, shape: ModelShape | None) -> Weights | None:
    """The same of a folder."""
    try:
        layout = discover(paths_in(folder), str(placement), str(folder))
    except (ModelCorrupt, NotSupported):
        return _converted(shape)
    here = {path: (folder / path).stat().st_size for path in layout.paths}
    sizes = {role: _size(here, path, layout.paths) for role, path in layout.roles.items()}
    if "decoder" in sizes and (folder / _SHARED).is_file():
        sizes["decoder"] += (folder / _SHARED).stat().st_size
    return _split(sizes, dict(layout.quantization), shape)


def local_shape(folder: Path) -> ModelShape | None:
    """From config.json, else from the header of a GGUF; None where neither tells."""
    try:
        if (folder / "config.json").is_file():
            return _of_config(ConfigFile.read(folder, "config.json"), folder)
        for path in sorted(folder.glob("*.gguf")):
            if "mmproj" not in path.name.lower():
                return _of_gguf(GgufFile(path).metadata)
    except (EdgeVLMError, OSError, KeyError, TypeError, ValueError):
        return None
    return None


def _converted(shape: ModelShape | None) -> Weights | None:
    if shape is None:
        return None
    decoder = shape.decoder.layer_weights + shape.decoder.head_weights
    seen = shape.vision.weights if shape.vision else 0
    return Weights(decoder * 9 // 16, int(_HALF * seen), bits={"decoder": "q4", "vision": "fp16"})


def _of_config(config: ConfigFile, folder: Path) -> ModelShape | None:
    if "text_config" not in config.fields:
        return None
    if config.fields.get("model_type") in MODEL_TYPES:
        return _of_smolvlm(read_config(folder), folder)
    text = config.nested("text_config").fields
    heads, hidden = _count(text, "num_attention_heads"), _count(text, "hidden_size")
    decoder = DecoderShape(
        layers=_count(text, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_count(text, "intermediate_size"),
        heads=heads,
        kv_heads=_count(text, "num_key_value_heads", heads),
        head_dim=_count(text, "head_dim", hidden // heads),
        vocab=_count(text, "vocab_size"),
    )
    return ModelShape(decoder, None, _count(text, "max_position_embeddings"))


def _count(fields: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A field, or the default where it is missing or null. Raises ValueError for no count."""
    value = fields.get(key)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= _LARGEST:
        raise ValueError(f"{key} is no count")
    return value


def _of_smolvlm(config: ModelConfig, folder: Path) -> ModelShape:
    text, vision = config.text, config.vision
    processor = ConfigFile.read_if_there(folder, "preprocessor_config.json")
    size = processor.fields.get("size")
    scaled = isinstance(size, dict) and size.get("longest_edge") is not None
    longest_edge = _count(processor.nested("size").fields, "longest_edge") if scaled else None
    if vision.patch_size * vision.scale_factor > vision.image_size:
        raise ValueError("a tile has no token")
    return ModelShape(
        DecoderShape(
            layers=text.n_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.n_heads,
            kv_heads=text.n_kv_heads,
            head_dim=text.head_dim,
            vocab=text.vocab_size,
        ),
        VisionShape.transformer(
            tile=vision.image_size,
            patch=vision.patch_size,
            layers=vision.n_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            heads=vision.n_heads,
            scale_factor=vision.scale_factor,
            longest_edge=longest_edge,
        ),
        text.max_length,
    )


def _of_gguf(metadata: Mapping[str, Value]) -> ModelShape:
    """Keys of ggml's docs/gguf.md, `<architecture>.block_count` and so on."""
    architecture = str(metadata["general.architecture"])

    def number(key: str, default: int | None = None) -> int:
        return _count(metadata, f"{architecture}.{key}", default)

    heads, hidden = number("attention.head_count"), number("embedding_length")
    tokens = metadata.get("tokenizer.ggml.tokens")
    decoder = DecoderShape(
        layers=number("block_count"),
        hidden=hidden,
        intermediate=number("feed_forward_length"),
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_dim=number("attention.key_length", hidden // heads),
        vocab=number("vocab_size", len(tokens) if isinstance(tokens, list) else 0),
    )
    return ModelShape(decoder, None, number("context_length"))


def _by_role(files: RuntimeFiles) -> dict[str, int]:
    """Bytes by role; of several files of weights all count."""
    sizes: dict[str, int] = {}
    for file in files.files:
        shard = file.path.endswith((".safetensors", ".gguf")) or ".onnx" in file.path
        role = file.role or ("weights" if shard else "")
        sizes[role] = sizes.get(role, 0) + file.size
    return sizes


def _size(sizes: Mapping[str, int], path: str, paths: tuple[str, ...]) -> int:
    """A role's file with what lies beside it: external data, shards, a package's inside."""
    stem = path.removesuffix("Manifest.json") if path.endswith("Manifest.json") else path
    belongs = [p for p in paths if p.startswith(stem)]
    if path.endswith(".safetensors"):
        belongs = [p for p in paths if p.endswith(".safetensors")]
    elif shard := _SHARD.search(path):
        belongs = [p for p in paths if _SHARD.sub("", p) == path[: shard.start()]]
    return sum(sizes[p] for p in belongs)


def _split(sizes: Mapping[str, int], bits: dict[str, str], shape: ModelShape | None) -> Weights:
    vision, decoder = sizes.get("vision_encoder", 0), sizes.get("decoder", 0)
    if both := sizes.get("weights", 0):
        seen = both // 2
        if shape is not None and shape.vision is not None:
            packed = both < _PACKED * 1.3 * shape.parameters
            seen = min(seen, int((_PACKED if packed else _HALF) * shape.vision.weights))
        vision, decoder = vision or seen, decoder or both - seen
    if shape is not None:
        count = shape.decoder.layer_weights + shape.decoder.head_weights
        bits["decoder"] = _told(bits.get("decoder"), decoder / count)
        if shape.vision is not None:
            bits["vision"] = _told(bits.get("vision"), vision / shape.vision.weights)
    return Weights(decoder, vision, sizes.get("embed_tokens", 0), bits)


def _told(label: str | None, density: float) -> str:
    """What a part's file name says of its bits, unless its bytes a weight belie it."""
    if label not in (None, "fp32", "gguf", "mlx"):
        return label
    kinds = {3.0: "fp32", 1.4: "fp16", 0.9: "int8"}
    return next((kind for least, kind in kinds.items() if density >= least), "q4")
