"""Trees of conversations through the decoder at once, every shared token only once.

All tokens of a batch stand in one row, prefixes first: the matrices see no padding. Only
attention parts them: prefixes among themselves, then each branch with its prefix and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from conversations import Tree
from decoder import HEAD, HEADS, KV_HEADS, WIDTH, LoraLinear
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

ROPE_THETA, NORM_EPS = 100_000.0, 1e-5


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of B trees with R branches, of P and L tokens at most, N tokens in all.

    ids, positions [N]; prefix [B, P] and branch [R, L] index the row of tokens, their padding
    its first; in_prefix, in_branch say what is none; tree [R] whose branch it is; sees [R, L,
    P + L]; before and target [M]: where an answer's token is due, and which.
    """

    ids: Tensor
    positions: Tensor
    prefix: Tensor
    in_prefix: Tensor
    branch: Tensor
    in_branch: Tensor
    tree: Tensor
    sees: Tensor
    before: Tensor
    target: Tensor


def pack(trees: Sequence[Tree]) -> Packed:
    prefixes = [tree.prefix for tree in trees]
    branches = [(i, branch) for i, tree in enumerate(trees) for branch in tree.branches]
    ids = [t for prefix in prefixes for t in prefix] + [t for _, b in branches for t in b.ids]
    positions = [p for prefix in prefixes for p in range(len(prefix))]
    positions += [len(prefixes[i]) + p for i, b in branches for p in range(len(b.ids))]
    n_shared = sum(map(len, prefixes))
    is_answer = torch.zeros(len(ids), dtype=torch.bool)
    is_answer[n_shared:] = torch.tensor([a for _, b in branches for a in b.is_answer])
    target_at = is_answer.nonzero()[:, 0]
    prefix, in_prefix = _grid([len(p) for p in prefixes], 0)
    branch, in_branch = _grid([len(b.ids) for _, b in branches], n_shared)
    tree = torch.tensor([i for i, _ in branches])
    length = branch.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool).tril().expand(len(branches), -1, -1)
    shared = in_prefix[tree][:, None].expand(-1, length, -1)
    row = torch.tensor(ids)
    return Packed(
        row,
        torch.tensor(positions),
        prefix,
        in_prefix,
        branch,
        in_branch,
        tree,
        torch.cat([shared, earlier], 2),
        target_at - 1,
        row[target_at],
    )


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
        q = _rotate(q.view(-1, HEADS, HEAD), cosine, sine)
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
    """Queries [N, HEADS, HEAD], keys and values [N, KV_HEADS, HEAD] to [N, WIDTH]."""
    q_prefix, k_prefix, v_prefix = (_pick(x, packed.prefix) for x in (q, k, v))
    # Padding stands behind every real token, so that order alone hides it.
    shared = functional.scaled_dot_product_attention(
        q_prefix, k_prefix, v_prefix, is_causal=True, enable_gqa=True
    )
    q_own, k_own, v_own = (_pick(x, packed.branch) for x in (q, k, v))
    keys, values = (
        torch.cat([prefix.index_select(0, packed.tree), own], 2)
        for prefix, own in ((k_prefix, k_own), (v_prefix, v_own))
    )
    n, length = packed.branch.shape
    # The three heads that share keys lie side by side.
    q_own = q_own.reshape(n, KV_HEADS, -1, HEAD)
    scores = (q_own @ keys.transpose(2, 3)).view(n, HEADS, length, -1) * HEAD**-0.5
    weights = scores.masked_fill(~packed.sees[:, None], -1e30).softmax(-1)
    own = (weights.view(n, KV_HEADS, -1, weights.shape[-1]) @ values).view(n, HEADS, length, HEAD)
    parts = (shared, packed.in_prefix), (own, packed.in_branch)
    rows = [x.transpose(1, 2).reshape(-1, WIDTH)[real.flatten()] for x, real in parts]
    return torch.cat(rows)


def _pick(x: Tensor, places: Tensor) -> Tensor:
    """[N, heads, HEAD] at [n, length] to [n, heads, length, HEAD]."""
    picked = x.flatten(1).index_select(0, places.flatten())
    return picked.view(*places.shape, -1, HEAD).transpose(1, 2)
