"""What a base model is, as far as its files tell, and whether an adapter was made for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgevlm.adapters.manifest import DeclaredBase
from edgevlm.devices.shape import DecoderShape
from edgevlm.engine.adapter import Lora
from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import AdapterMismatch, EdgeVLMError
from edgevlm.models.catalog import load_catalog
from edgevlm.models.gguf import GgufFile
from edgevlm.models.names import HubId
from edgevlm.models.shapes import local_shape


@dataclass(frozen=True, slots=True)
class Base:
    """`tokenizer` is the SHA-256 of the vocabulary; what the files don't tell is None.

    `edition` counts the weights that went by this name, where its catalog entry does.
    """

    name: str
    decoder: DecoderShape | None
    tokenizer: str | None
    edition: int | None = None

    @property
    def fingerprint(self) -> str | None:
        """16 hex digits of shapes and tokenizer; None unless both are known.

        The count of tokens isn't in it, since files of one model round it up differently.
        """
        if self.decoder is None or self.tokenizer is None:
            return None
        d = self.decoder
        sizes = (d.layers, d.hidden, d.intermediate, d.heads, d.kv_heads, d.head_dim)
        return hashlib.sha256(f"{sizes} {self.tokenizer}".encode()).hexdigest()[:16]

    @property
    def described(self) -> str:
        if self.decoder is None:
            return self.name
        return f"{self.name} ({_sizes(self.decoder.hidden, self.decoder.layers)})"


def describe_base(files: ModelFiles) -> Base:
    """Look at config.json, tokenizer.json or the header of a GGUF, never at weights."""
    shape = local_shape(files.folder)
    decoder = shape.decoder if shape is not None else None
    return Base(files.name, decoder, tokenizer_digest(files), files.edition)


def model_for(adapters: Iterable[Sequence[DeclaredBase]]) -> str | None:
    """The model of the catalog that each of these says it was made for, by its bases.

    None where no such one is left, or they say nothing.
    """
    entries = load_catalog().entries
    names = [[base.name for base in bases if base.name in entries] for bases in adapters if bases]
    common = [name for name in names[0] if all(name in other for other in names)] if names else []
    return common[0] if common else None


def check_fits(lora: Lora, bases: Sequence[DeclaredBase], base: Base) -> None:
    """Raise AdapterMismatch, naming both sides, unless `lora` can be an adapter of `base`.

    It was made for one of `bases`, and every module of the decoder has the features that the
    base's has. Empty `bases` say nothing.
    """
    check_declared(lora.name, bases, base)
    if base.decoder is None:
        return
    for module, low_rank in lora.decoder.items():
        in_features, out_features = low_rank.a.shape[1], low_rank.b.shape[0]
        _, layer, part = module.split(".", 2)
        if int(layer) >= base.decoder.layers:
            raise _mismatch(lora, bases, base, f"it has no {module}")
        wanted = _features(base.decoder)[part]
        if (in_features, out_features) != wanted:
            raise _mismatch(
                lora,
                bases,
                base,
                f"{module} takes {in_features} features to {out_features} in the adapter,"
                f" {wanted[0]} to {wanted[1]} in the model",
            )


def check_declared(name: str, bases: Sequence[DeclaredBase], base: Base) -> None:
    """Raise AdapterMismatch where the manifest alone tells that the base is another one, or
    has had other weights since."""
    same = [declared for declared in bases if _may_be(declared, base)]
    if bases and not same:
        made_for = ", ".join(dict.fromkeys(_with_fingerprint(b) for b in bases))
        this = _with_fingerprint(DeclaredBase(base.described, base.fingerprint))
        raise AdapterMismatch(
            f"The adapter {name} was made for {made_for}, and this is {this}.", hint=_hint(bases)
        )
    if bases and not any(_has_its_weights(declared, base) for declared in same):
        made_for = ", ".join(f"{declared.name} edition {declared.edition}" for declared in same)
        raise AdapterMismatch(
            f"The adapter {name} was made for {made_for}, and this is edition {base.edition}.",
            hint="Install a version of it for this edition, or train it again.",
        )


def check_current(name: str, bases: Sequence[DeclaredBase]) -> None:
    """Raise AdapterMismatch where the catalog has other weights by now for each of the bases, so
    that no model can be loaded for it."""
    entries = load_catalog().entries
    now = [
        Base(b.name, None, None, entries[b.name].edition if b.name in entries else None)
        for b in bases
    ]
    if bases and not any(map(_has_its_weights, bases, now)):
        check_declared(name, bases, now[0])


def tokenizer_digest(files: ModelFiles) -> str | None:
    """SHA-256, in hex, of the vocabulary in the order of ids; None where it can't be read.

    The same for a tokenizer.json and for the GGUF file that was made with it: ids that a GGUF
    fills up with `[PAD...]` count as missing.
    """
    path = files.folder / "tokenizer.json"
    decoder = files.roles.get("decoder")
    if not path.is_file() and decoder is not None and decoder.suffix == ".gguf":
        path = decoder
    try:
        status = path.stat()
        return _digest_of(path, status.st_size, status.st_mtime_ns)
    except (EdgeVLMError, OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


@lru_cache(maxsize=8)
def _digest_of(path: Path, size: int, mtime_ns: int) -> str:
    """Tens of milliseconds; size and time of change are there to tell versions apart."""
    tokens = _gguf_tokens(path) if path.suffix == ".gguf" else _json_tokens(path)
    digest = hashlib.sha256()
    for id_, token in sorted(tokens):
        digest.update(f"{id_} {token}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _gguf_tokens(path: Path) -> Iterable[tuple[int, str]]:
    tokens = GgufFile(path).metadata["tokenizer.ggml.tokens"]
    if not isinstance(tokens, list):
        raise TypeError("the tokens are no list")
    return ((id_, token) for id_, token in enumerate(tokens) if token != f"[PAD{id_}]")


def _json_tokens(path: Path) -> Iterable[tuple[int, str]]:
    raw: dict[str, Any] = json.loads(path.read_bytes())
    vocabulary: Any = raw["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [token, score]
        vocabulary = {token: id_ for id_, (token, _) in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict):
        raise TypeError("the vocabulary is no mapping")
    by_id = {id_: token for token, id_ in vocabulary.items()}
    by_id |= {added["id"]: added["content"] for added in raw.get("added_tokens") or []}
    return by_id.items()


def _features(decoder: DecoderShape) -> Mapping[str, tuple[int, int]]:
    """(in, out) of every linear module of a layer."""
    hidden, inner = decoder.hidden, decoder.intermediate
    queries, keys = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    return {
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def _may_be(declared: DeclaredBase, base: Base) -> bool:
    """Fingerprints that are known decide, and so do two names that the catalog knows.

    Names of folders and of other people's repositories tell nothing: the same weights have many.
    """
    if declared.fingerprint and base.fingerprint and declared.fingerprint != base.fingerprint:
        return False
    one, other = _catalog_name(declared.name), _catalog_name(base.name)
    return one is None or other is None or one == other


def _has_its_weights(declared: DeclaredBase, base: Base) -> bool:
    """Editions of a model that the catalog doesn't know by that name tell nothing."""
    if declared.edition is None or base.edition is None:
        return True
    return declared.edition == base.edition or _catalog_name(declared.name) is None


def _catalog_name(name: str) -> str | None:
    catalog = load_catalog()
    if name in catalog.entries:
        return name
    hub = HubId.parse(name)
    entry = None if hub is None else catalog.by_base(HubId(hub.owner, hub.repo))
    return None if entry is None else entry.name


def _mismatch(lora: Lora, bases: Sequence[DeclaredBase], base: Base, what: str) -> AdapterMismatch:
    layers = 1 + max(int(module.split(".")[1]) for module in lora.decoder)
    widths = {
        part.a.shape[1]
        for module, part in lora.decoder.items()
        if not module.endswith(("o_proj", "down_proj"))
    }
    sizes = f" ({_sizes(min(widths), layers)})" if widths else ""
    made_for = ", ".join(declared.name for declared in bases) or "another model"
    return AdapterMismatch(
        f"The adapter {lora.name} was made for {made_for}{sizes}, and this is {base.described}:"
        f" {what}.",
        hint=_hint(bases),
    )


def _hint(bases: Sequence[DeclaredBase]) -> str:
    names = [declared.name for declared in bases if _catalog_name(declared.name)]
    return f"Load {names[0]} for it." if names else "Load the model that it was trained on."


def _sizes(width: int, layers: int) -> str:
    return f"{width} wide, {layers} layer{'' if layers == 1 else 's'}"


def _with_fingerprint(base: DeclaredBase) -> str:
    return f"{base.name} [{base.fingerprint}]" if base.fingerprint else base.name
