"""A Qwen3 model on bare tensors, for models so small that a library's cost per call would be most of the time.

R rows, W width, H heads, D head_dim, V vocabulary. `check_against_library` compares it with transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

LAYER = ("q", "k", "v", "o", "q_norm", "k_norm", "gate", "up", "down", "attn_norm", "mlp_norm")
_NAMES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj", "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
}  # fmt: skip


class Model:
    """The weights of a Qwen3 directory (tied embeddings, as many key heads as query heads) and its forward passes."""

    def __init__(self, path: str | Path) -> None:
        config = json.loads((Path(path) / "config.json").read_text())
        if not config["tie_word_embeddings"] or config["num_key_value_heads"] != config["num_attention_heads"]:
            raise ValueError(f"expected tied embeddings and one key head per query head in {path}")
        self.path = str(path)
        self.heads, self.head_dim = config["num_attention_heads"], config["head_dim"]
        self.eps, self.eos = config["rms_norm_eps"], config["eos_token_id"]
        self._named = {name: tensor.clone() for name, tensor in load_file(Path(path) / "model.safetensors").items()}
        self.embedding = self._named["model.embed_tokens.weight"]
        self.norm = self._named["model.norm.weight"]
        self.layers = [
            {key: self._named[f"model.layers.{i}.{_NAMES[key]}.weight"] for key in LAYER}
            for i in range(config["num_hidden_layers"])
        ]
        half = torch.arange(0, self.head_dim, 2) / self.head_dim
        angles = torch.arange(1024)[:, None] / config["rope_parameters"]["rope_theta"] ** half
        self.cos, self.sin = (f(torch.cat([angles, angles], 1)) for f in (torch.cos, torch.sin))  # [positions, D]

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self._named.values())

    def load(self, named: Mapping[str, torch.Tensor]) -> None:
        """Takes other weights, named as in the model's files."""
        for name, tensor in self._named.items():
            tensor.copy_(named[name])

    def rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """`x` [..., H, D] with rotary positions [...]."""
        cos, sin = self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2)
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    def heads_of(
        self, layer: dict[str, torch.Tensor], hidden: torch.Tensor, positions: torch.Tensor
    ) -> list[torch.Tensor]:
        """Queries, keys and values [R, W, H, D], rotated."""
        x = F.rms_norm(hidden, hidden.shape[-1:], layer["attn_norm"], self.eps)
        q, k, v = (F.linear(x, layer[name]).view(*x.shape[:-1], self.heads, self.head_dim) for name in ("q", "k", "v"))
        q = F.rms_norm(q, (self.head_dim,), layer["q_norm"], self.eps)
        k = F.rms_norm(k, (self.head_dim,), layer["k_norm"], self.eps)
        return [self.rotate(q, positions), self.rotate(k, positions), v]

    def close_layer(self, layer: dict[str, torch.Tensor], hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """The hidden states after a layer, from its attention's output [..., H * D]."""
        hidden = hidden + F.linear(mixed, layer["o"])
        x = F.rms_norm(hidden, hidden.shape[-1:], layer["mlp_norm"], self.eps)
        return hidden + F.linear(F.silu(F.linear(x, layer["gate"])) * F.linear(x, layer["up"]), layer["down"])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., V]."""
        return F.linear(F.rms_norm(hidden, hidden.shape[-1:], self.norm, self.eps), self.embedding)

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Hidden states before the last norm of `ids` [R, W], padded on the right; causal unless there is a mask."""
        if positions is None:
            positions = torch.arange(ids.shape[1]).expand_as(ids)
        hidden = self.embedding[ids]
        for layer in self.layers:
            q, k, v = (x.transpose(1, 2) for x in self.heads_of(layer, hidden, positions))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            hidden = self.close_layer(layer, hidden, mixed.transpose(1, 2).flatten(2))
        return hidden


class Cache:
    """Keys and values of many rows while they grow: [layer][2] of [R, H, W, D]; row r holds `lengths[r]` positions."""

    def __init__(self, model: Model, rows: int, width: int) -> None:
        self.model = model
        # Values of masked positions enter a product with 0, where garbage could be infinite; keys are masked after it.
        self.tensors = [self._room(rows, width) for _ in model.layers]
        self.lengths = torch.zeros(rows, dtype=torch.long)

    def _room(self, rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (rows, self.model.heads, width, self.model.head_dim)
        return torch.empty(shape), torch.zeros(shape)

    def _widen(self, used: int) -> None:
        """Makes room for `used` positions, and half as many again."""
        rows, _, width, _ = self.tensors[0][0].shape
        wider = [self._room(rows, used + used // 2) for _ in self.tensors]
        for old, new in zip(self.tensors, wider, strict=True):
            for x, y in zip(old, new, strict=True):
                y[:, :, :width] = x
        self.tensors = wider

    def prefill(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The logits [R, V] after each of the first R rows' `lengths` tokens of `ids` [R, W]."""
        model, rows, width = self.model, *ids.shape
        positions = torch.arange(width).expand_as(ids)
        hidden = model.embedding[ids]
        for layer, (keys, values) in zip(model.layers, self.tensors, strict=True):
            q, k, v = (x.transpose(1, 2) for x in model.heads_of(layer, hidden, positions))
            keys[:rows, :, :width], values[:rows, :, :width] = k, v
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            hidden = model.close_layer(layer, hidden, mixed.transpose(1, 2).flatten(2))
        self.lengths[:rows] = lengths
        return model.logits(hidden[torch.arange(rows), lengths - 1])

    def copy_rows(self, sources: torch.Tensor, first: int) -> None:
        """Rows `first`.. become copies of the rows `sources`."""
        end, used = first + len(sources), int(self.lengths.max())
        for pair in self.tensors:
            for x in pair:
                x[first:end, :, :used] = x[sources, :, :used]
        self.lengths[first:end] = self.lengths[sources]

    def keep_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The new places of `rows`, the only ones to stay: those behind the new end move into the gaps before it."""
        used, count = int(self.lengths.max()), len(rows)
        places, behind = rows.clone(), rows >= count
        free = torch.ones(count, dtype=torch.bool)
        free[rows[~behind]] = False
        places[behind] = free.nonzero().squeeze(1)
        for pair in self.tensors:
            for x in pair:
                x[places[behind], :, :used] = x[rows[behind], :, :used]
        self.lengths[places[behind]] = self.lengths[rows[behind]]
        self.lengths[count:] = 0
        return places

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits [R, V] after one more token [R] on each of the first R rows."""
        model, rows = self.model, len(tokens)
        at = self.lengths[:rows].clone()
        used = int(at.max()) + 1
        if used > self.tensors[0][0].shape[2]:
            self._widen(used)
        barred = torch.arange(used) > at[:, None] if int(at.min()) + 1 < used else None
        index, hidden = torch.arange(rows), model.embedding[tokens]
        for layer, (keys, values) in zip(model.layers, self.tensors, strict=True):
            q, k, v = model.heads_of(layer, hidden, at)
            keys[index, :, at], values[index, :, at] = k, v
            # The query on the left: on the right, a product with one column takes 2.4 to 4 times as long.
            scores = torch.matmul(q.unsqueeze(2), keys[:rows, :, :used].transpose(2, 3)) * model.head_dim**-0.5
            if barred is not None:
                scores = scores.masked_fill(barred[:, None, None], float("-inf"))
            mixed = torch.matmul(scores.softmax(-1), values[:rows, :, :used])
            hidden = model.close_layer(layer, hidden, mixed.flatten(1))
        self.lengths[:rows] += 1
        return model.logits(hidden)


@torch.no_grad()
def check_against_library(model: Model, tolerance: float = 1e-3) -> float:
    """The largest difference of logits from transformers', cached and not; ends the program above `tolerance`."""
    from transformers import AutoModelForCausalLM

    ids = torch.randint(3, model.embedding.shape[0], (3, 40), generator=torch.Generator().manual_seed(0))
    theirs = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)(ids).logits
    plain = model.logits(model.forward(ids))
    cache = Cache(model, 3, 40)
    last = cache.prefill(ids[:, :20], torch.tensor([20, 15, 20]))
    rows = [last]
    for t in range(20, 40):
        rows.append(cache.step(torch.where(torch.tensor([True, False, True]), ids[:, t], ids[:, t - 5])))
    cached = torch.stack(rows, 1)  # row 1 lags five tokens behind
    wanted = torch.stack([theirs[0, 19:], theirs[1, 14:35], theirs[2, 19:]])
    worst = max(float((plain - theirs).abs().max()), float((cached - wanted).abs().max()))
    if worst > tolerance:
        raise SystemExit(
            f"the bare model must agree with transformers to {tolerance} (got {worst:.2e} for {model.path})"
        )
    return worst
