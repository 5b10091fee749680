"""The demo model as a torch module: a plain llama (RMSNorm, rotary positions, SwiGLU) with tied embeddings."""

# What only the training needs is not among the development packages.
# mypy: disable-error-code="import-not-found"
# mypy: allow-subclassing-any

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network; everything the GGUF metadata needs to describe it."""

    vocabulary: int
    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 512
    context: int = 8192
    rope_base: float = 10000.0
    epsilon: float = 1e-5

    @property
    def head_size(self) -> int:
        """Width of one attention head (32 by default, a size all llama.cpp kernels know)."""
        return self.width // self.heads


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate neighbouring pairs of a head, the order llama.cpp uses for the llama architecture."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.attn_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_v = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, turns: Tensor, bias: Tensor | None) -> Tensor:
        """Attention and feed-forward, each added to the residual stream."""
        batch, length, width = x.shape
        h = self.attn_norm(x)
        split = (batch, length, self.shape.heads, self.shape.head_size)
        q = rotate(self.attn_q(h).view(split).transpose(1, 2), turns)
        k = rotate(self.attn_k(h).view(split).transpose(1, 2), turns)
        v = self.attn_v(h).view(split).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)
        x = x + self.attn_output(mixed.transpose(1, 2).reshape(batch, length, width))
        h = self.ffn_norm(x)
        gated: Tensor = functional.silu(self.ffn_gate(h)) * self.ffn_up(h)
        out: Tensor = x + self.ffn_down(gated)
        return out


class Network(nn.Module):
    """Token ids and their positions in, logits out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        nn.init.normal_(self.token_embd.weight, std=0.05)
        for name, weight in self.named_parameters():
            if weight.dim() == 2 and name != "token_embd.weight":
                # Layers that write into the residual stream start smaller, so that depth does not inflate it.
                writes = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5 / ((2 * shape.layers) ** 0.5 if writes else 1.0))
        powers = torch.arange(0, shape.head_size, 2, dtype=torch.float64) / shape.head_size
        self.register_buffer("frequencies", shape.rope_base**-powers, persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor, wanted: Tensor, bias: Tensor | None = None) -> Tensor:
        """Logits of the places where `wanted` is true (all others would be computed for nothing).

        `bias` is added to the attention scores; it has to hide the future. Without it attention is plainly causal.
        """
        frequencies = self.get_buffer("frequencies")
        # Double precision: a float32 angle of a late position would be off by more than F16 weights are.
        angles = positions[:, None, :, None].double() * frequencies
        turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, turns, bias)
        return functional.linear(self.output_norm(x[wanted]), self.token_embd.weight)


def parameter_count(network: Network) -> int:
    """Number of trained parameters."""
    return sum(weight.numel() for weight in network.parameters())
