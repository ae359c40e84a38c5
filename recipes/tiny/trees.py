"""Trees of conversations through the decoder at once, every shared token only once.

All tokens of a batch stand in one row, prefixes first: the matrices see no padding. Only
attention parts them: prefixes among themselves, then each branch with its prefix and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from conversations import Sample, Tree
from decoder import HEAD, HEADS, KV_HEADS, WIDTH, LoraLinear
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

ROPE_THETA, NORM_EPS = 100_000.0, 1e-5


# Branches whose attention is computed together: of like length, to pad little.
BRANCHES_AT_ONCE = 10
MASKED = -1e4


@dataclass(frozen=True, slots=True)
class Branches:
    """R branches of L tokens at most. places [R, L] index the row of tokens, their padding its
    first; real says what is none; tree [R] whose branches they are; bias [R, 1, L, P + L]."""

    places: Tensor
    real: Tensor
    tree: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of B trees of N tokens in all, whose prefixes have P at most.

    ids, positions [N]; prefix, in_prefix [B, P] as `places` and `real` of Branches; before and
    target [M]: where an answer's token is due, and which; opens [M]: whether it is the first one.
    """

    ids: Tensor
    positions: Tensor
    prefix: Tensor
    in_prefix: Tensor
    branches: tuple[Branches, ...]
    before: Tensor
    target: Tensor
    opens: Tensor


def by_length(trees: Sequence[Tree]) -> list[tuple[int, Sample]]:
    """All branches in the order in which `pack` lays them out, with their trees."""
    branches = [(i, branch) for i, tree in enumerate(trees) for branch in tree.branches]
    return sorted(branches, key=lambda pair: len(pair[1].ids))


def pack(trees: Sequence[Tree]) -> Packed:
    prefixes = [tree.prefix for tree in trees]
    branches = by_length(trees)
    ids = [t for prefix in prefixes for t in prefix] + [t for _, b in branches for t in b.ids]
    positions = [p for prefix in prefixes for p in range(len(prefix))]
    positions += [len(prefixes[i]) + p for i, b in branches for p in range(len(b.ids))]
    n_shared = sum(map(len, prefixes))
    prefix, in_prefix = _grid([len(p) for p in prefixes], 0)
    groups, start = [], n_shared
    for first in range(0, len(branches), BRANCHES_AT_ONCE):
        part = branches[first : first + BRANCHES_AT_ONCE]
        groups.append(_group(part, start, in_prefix))
        start += sum(len(b.ids) for _, b in part)
    is_answer = [False] * n_shared + [a for _, b in branches for a in b.is_answer]
    target_at = torch.tensor(is_answer).nonzero()[:, 0]
    row = torch.tensor(ids)
    return Packed(
        row,
        torch.tensor(positions),
        prefix,
        in_prefix,
        tuple(groups),
        target_at - 1,
        row[target_at],
        ~torch.tensor(is_answer)[target_at - 1],
    )


def _group(branches: Sequence[tuple[int, Sample]], start: int, in_prefix: Tensor) -> Branches:
    places, real = _grid([len(b.ids) for _, b in branches], start)
    tree = torch.tensor([i for i, _ in branches])
    length = places.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool).tril().expand(len(branches), -1, -1)
    sees = torch.cat([in_prefix[tree][:, None].expand(-1, length, -1), earlier], 2)
    bias = torch.zeros(sees.shape, dtype=torch.bfloat16).masked_fill(~sees, MASKED)
    return Branches(places, real, tree, bias[:, None])


def _grid(lengths: Sequence[int], start: int) -> tuple[Tensor, Tensor]:
    """Where each of `lengths` tokens stands, padded to a grid, and what is no padding."""
    there = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    starts = torch.tensor([start, *lengths]).cumsum(0)[:-1]
    places = starts[:, None] + torch.arange(max(lengths))[None]
    return torch.where(there, places, 0), there


def answer_logits(model: LlamaForCausalLM, packed: Packed) -> Tensor:
    """Logits [M, vocabulary], float32, with matrices in bfloat16."""
    body = model.model
    cosine, sine = _rotation(packed.positions)
    x = body.embed_tokens(packed.ids).float()
    for layer in body.layers:
        attention = layer.self_attn
        h = _norm(x, layer.input_layernorm)
        q, k, v = (_linear(m, h) for m in (attention.q_proj, attention.k_proj, attention.v_proj))
        q = _rotate(q.view(-1, HEADS, HEAD), HEAD**-0.5 * cosine, HEAD**-0.5 * sine)
        k = _rotate(k.view(-1, KV_HEADS, HEAD), cosine, sine)
        mixed = _attend(q, k, v.view(-1, KV_HEADS, HEAD), packed)
        x = x + _linear(attention.o_proj, mixed)
        h = _norm(x, layer.post_attention_layernorm)
        mlp = layer.mlp
        gate = functional.silu(_linear(mlp.gate_proj, h))
        x = x + _linear(mlp.down_proj, gate * _linear(mlp.up_proj, h))
    due = _norm(x[packed.before], body.norm)
    return functional.linear(due, model.lm_head.weight).float()


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    return functional.rms_norm(x, (WIDTH,), norm.weight, NORM_EPS).bfloat16()


def _linear(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, LoraLinear):
        low = (x @ module.a.bfloat16()) @ module.b.bfloat16()
        return functional.linear(x, module.base.weight) + low
    return functional.linear(x, module.weight)


def _rotation(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, 1, HEAD / 2]."""
    frequencies = ROPE_THETA ** (-torch.arange(0, HEAD, 2) / HEAD)
    angles = positions[:, None, None] * frequencies
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, -1).bfloat16()


def _attend(q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
    """Scaled queries [N, HEADS, HEAD], keys and values [N, KV_HEADS, HEAD] to [N, WIDTH]."""
    q_prefix, k_prefix, v_prefix = (_pick(x, packed.prefix) for x in (q, k, v))
    # Padding stands behind every real token, so that order alone hides it.
    shared = functional.scaled_dot_product_attention(
        q_prefix, k_prefix, v_prefix, is_causal=True, enable_gqa=True, scale=1.0
    )
    rows = [_real_rows(shared, packed.in_prefix)]
    for group in packed.branches:
        q_own, k_own, v_own = (_pick(x, group.places) for x in (q, k, v))
        keys, values = (
            torch.cat([prefix.index_select(0, group.tree), own], 2)
            for prefix, own in ((k_prefix, k_own), (v_prefix, v_own))
        )
        n, length = group.places.shape
        # The three heads that share keys lie side by side.
        q_own = q_own.reshape(n, KV_HEADS, -1, HEAD)
        scores = (q_own @ keys.transpose(2, 3)).view(n, HEADS, length, -1) + group.bias
        weights = scores.softmax(-1).view(n, KV_HEADS, -1, keys.shape[2])
        rows.append(_real_rows((weights @ values).view(n, HEADS, length, HEAD), group.real))
    return torch.cat(rows)


def _real_rows(x: Tensor, real: Tensor) -> Tensor:
    """[n, HEADS, length, HEAD] to [number of real tokens, WIDTH]."""
    return x.transpose(1, 2).reshape(-1, WIDTH)[real.flatten()]


def _pick(x: Tensor, places: Tensor) -> Tensor:
    """[N, heads, HEAD] at [n, length] to [n, heads, length, HEAD]."""
    picked = x.flatten(1).index_select(0, places.flatten())
    return picked.view(*places.shape, -1, HEAD).transpose(1, 2)
