"""What the learner's step is measured against: a Llama written out over rows without padding, and padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

Group = tuple[list[int], list[list[int]]]  # a prompt and its responses


class Ceiling:
    """A Llama written out over one row a group."""

    def __init__(self, model: Any) -> None:
        self.model, config = model, model.config
        self.heads, self.kv, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.eps, base = config.rms_norm_eps, config.rope_parameters["rope_theta"]
        self.rates = base ** (-torch.arange(0, self.dim, 2) / self.dim)

    def backward(self, group: Group, advantages: Sequence[float], count: int) -> None:
        """Adds the gradient of -sum_t A_t log pi_t / count."""
        prompt, responses = group
        ids = torch.tensor(prompt + [t for r in responses for t in r])
        at = torch.cat([torch.arange(len(prompt))] + [len(prompt) + torch.arange(len(r)) for r in responses])
        angles = (at[:, None] * self.rates).repeat(1, 2)
        turn = angles.cos(), angles.sin()
        x = self.model.model.embed_tokens(ids)
        lengths = [len(r) for r in responses]
        for layer in self.model.model.layers:
            x = x + self._attend(layer, x, turn, len(prompt), lengths)
            y = rms_norm(x, x.shape[-1:], layer.post_attention_layernorm.weight, self.eps)
            mlp = layer.mlp
            x = x + mlp.down_proj(silu(mlp.gate_proj(y)) * mlp.up_proj(y))
        x = rms_norm(x, x.shape[-1:], self.model.model.norm.weight, self.eps)
        starts = [len(prompt) + sum(lengths[:i]) for i in range(len(lengths))]
        before = [[len(prompt) - 1, *range(start, start + n - 1)] for start, n in zip(starts, lengths, strict=True)]
        hidden = x[torch.tensor([i for row in before for i in row])]
        scale = torch.tensor([a / count for a, n in zip(advantages, lengths, strict=True) for _ in range(n)])
        _OnePass.apply(hidden, self.model.lm_head.weight, ids[len(prompt) :], scale).backward()

    def _attend(
        self, layer: Any, x: torch.Tensor, turn: tuple[torch.Tensor, ...], prompt: int, lengths: Sequence[int]
    ) -> torch.Tensor:
        y, attn = rms_norm(x, x.shape[-1:], layer.input_layernorm.weight, self.eps), layer.self_attn
        q, k, v = (
            p(y).view(len(y), -1, self.dim).transpose(0, 1)[None] for p in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        q, k = _turn(q, *turn), _turn(k, *turn)
        options = {"enable_gqa": self.heads != self.kv}
        (q0, *qs), (k0, *ks), (v0, *vs) = (z.split([prompt, *lengths], 2) for z in (q, k, v))
        outputs = [scaled_dot_product_attention(q0, k0, v0, is_causal=True, **options)]
        for n, one, key, value in zip(lengths, qs, ks, vs, strict=True):
            mask = torch.ones(n, prompt + n, dtype=torch.bool).tril(prompt)
            both = torch.cat([k0, key], 2), torch.cat([v0, value], 2)
            outputs.append(scaled_dot_product_attention(one, *both, attn_mask=mask, **options))
        return linear(torch.cat(outputs, 2)[0].transpose(0, 1).flatten(1), attn.o_proj.weight)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class _OnePass(torch.autograd.Function):
    """-sum_t scale_t log pi_t with its gradients made on the way forward: three products, a block of rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        by_hidden, by_weight, loss = torch.empty_like(hidden), torch.zeros_like(weight), hidden.new_zeros(())
        for rows in torch.arange(len(hidden)).split(max(1, (4 << 20) // weight.shape[0])):
            logp = (hidden[rows] @ weight.T).log_softmax(-1)
            own = targets[rows, None]
            loss -= (scale[rows] * logp.gather(1, own)[:, 0]).sum()
            grad = logp.exp_().mul_(scale[rows, None])
            grad.scatter_add_(1, own, -scale[rows, None])
            by_hidden[rows] = grad @ weight
            by_weight.addmm_(grad.T, hidden[rows])
        ctx.save_for_backward(by_hidden, by_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*ctx.saved_tensors, None, None)


def padded_backward(model: Any, groups: Sequence[Group], advantages: Sequence[float], count: int) -> None:
    """Adds the same gradient from padded rows of 8 and their logits."""
    samples = [(p, r) for p, responses in groups for r in responses]
    for start in range(0, len(samples), 8):
        chunk = samples[start : start + 8]
        width = max(len(p) + len(r) for p, r in chunk)
        ids = torch.tensor([[*p, *r, *[0] * (width - len(p) - len(r))] for p, r in chunk])
        scale = torch.zeros(len(chunk), width - 1)
        for row, (p, r) in enumerate(chunk):
            scale[row, len(p) - 1 : len(p) + len(r) - 1] = advantages[start + row] / count
        first = min(len(p) for p, _ in chunk) - 1
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=width - first).logits[:, :-1]
        logp = logits.log_softmax(-1).gather(2, ids[:, first + 1 :, None])[..., 0]
        (-(scale[:, first:] * logp).sum()).backward()
