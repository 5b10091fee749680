"""Builds the bundled demo model from the corpus: vocabulary, training, GGUF file and manifest."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from export import write_gguf, write_manifest
from network import Network, Shape, parameter_count
from samples import END, START, TEXT_END, Corpus, Row, Sampler, vocabulary_texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parents[1] / "src" / "llamastream" / "engine" / "data"
SPECIALS = [TEXT_END, START, END]
# Short rows are cheap and train most of the text; long rows show how crowded a long conversation is.
LENGTHS = ((512, 0.6), (1024, 0.28), (2048, 0.12))


def train_tokenizer(corpus: Corpus, size: int, seed: int) -> Tokenizer:
    """Byte-level BPE that cuts text as llama.cpp does for `tokenizer.ggml.pre` = gpt-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(vocabulary_texts(corpus, seed)), trainer)
    return tokenizer


def batch_tensors(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, their positions, targets and weights of a batch."""
    tokens = torch.tensor([row.tokens for row in rows])
    positions = torch.tensor([row.positions for row in rows])
    weights = torch.tensor([row.weights for row in rows])
    return tokens[:, :-1], positions[:, :-1], tokens[:, 1:], weights[:, 1:]


def crowd_bias(rows: list[Row]) -> Tensor | None:
    """Attention scores as if the conversation were much longer, or None for rows that are taken as they are.

    In a long conversation the few tokens that matter compete with thousands of others. To make every earlier token
    count `crowd` times is the same as to repeat it that often, and costs nothing.
    """
    size = len(rows[0].tokens) - 1
    if size > 1024:
        return None
    messages = torch.tensor([row.messages for row in rows])[:, :-1]
    crowd = torch.tensor([row.crowd for row in rows]).log()
    earlier = messages[:, :, None] > messages[:, None, :]
    future = torch.ones(size, size, dtype=torch.bool).triu(1)
    return (earlier * crowd[:, None, None]).masked_fill(future, -torch.inf)[:, None]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first twentieth, then a cosine down to a hundredth."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    progress = torch.tensor((step - warm) / max(1, steps - warm))
    return peak * (0.01 + 0.99 * 0.5 * (1 + torch.cos(progress * torch.pi).item()))


def train(network: Network, sampler: Sampler, steps: int, tokens: int, peak: float) -> None:
    """Train in place."""
    # Muon learns the matrices of the layers in far fewer steps than AdamW, which does the rest.
    matrices = [weight for name, weight in network.named_parameters() if name.startswith("blk") and weight.dim() == 2]
    others = [
        weight for name, weight in network.named_parameters() if not (name.startswith("blk") and weight.dim() == 2)
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.97), weight_decay=0.0),
    ]
    lengths, shares = [length for length, _ in LENGTHS], [share for _, share in LENGTHS]
    choice = random.Random(sampler.rng.random())
    began, seen, shown, right, count = time.monotonic(), 0, 0.0, 0, 0
    for step in range(steps):
        length = choice.choices(lengths, shares)[0]
        rows = list(sampler.rows(max(1, tokens // length), length))
        inputs, positions, targets, weights = batch_tensors(rows)
        wanted = weights > 0
        rate = learning_rate(step, steps, peak)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate
        logits = network(inputs, positions, wanted, crowd_bias(rows))
        losses = functional.cross_entropy(logits, targets[wanted], reduction="none")
        loss = (losses * weights[wanted]).sum() / weights[wanted].sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        seen += inputs.numel()
        shown += loss.item()
        right += int((logits.argmax(-1) == targets[wanted]).sum())
        count += logits.shape[0]
        if (step + 1) % 25 == 0 or step + 1 == steps:
            seconds = time.monotonic() - began
            print(
                f"step {step + 1:5d}/{steps}  loss {shown / (step % 25 + 1):.4f}  right {right / count:.4f}  "
                f"rate {rate:.5f}  {seconds:6.0f} s  {seen / seconds:6.0f} tokens/s",
                flush=True,
            )
            shown, right, count = 0.0, 0, 0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus.toml", help="questions and answers to learn")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for demo.gguf and demo.json")
    parser.add_argument("--steps", type=int, default=800, help="training steps")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--rate", type=float, default=6e-3, help="highest learning rate")
    parser.add_argument("--vocabulary", type=int, default=896, help="size of the vocabulary")
    parser.add_argument("--layers", type=int, default=4, help="number of layers")
    parser.add_argument("--width", type=int, default=128, help="width of the model, a multiple of 32")
    parser.add_argument("--hidden", type=int, default=512, help="width of the feed-forward layers")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--seed", type=int, default=1, help="seed of every random choice")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)
    corpus = Corpus.load(arguments.corpus)
    tokenizer = train_tokenizer(corpus, arguments.vocabulary, arguments.seed)
    shape = Shape(
        vocabulary=tokenizer.get_vocab_size(),
        width=arguments.width,
        layers=arguments.layers,
        heads=arguments.width // 32,
        hidden=arguments.hidden,
    )
    network = Network(shape)
    sizes = [len(tokenizer.encode(entry.answer).ids) for entry in corpus.entries]
    print(
        f"{len(corpus.entries)} answers with {sum(sizes)} tokens (longest {max(sizes)}), "
        f"{shape.vocabulary} tokens in the vocabulary, {parameter_count(network)} parameters",
        flush=True,
    )
    sampler = Sampler(corpus, tokenizer, shape.context, arguments.seed)
    train(network, sampler, arguments.steps, arguments.tokens, arguments.rate)
    arguments.output.mkdir(parents=True, exist_ok=True)
    model, manifest = arguments.output / "demo.gguf", arguments.output / "demo.json"
    write_gguf(model, network, tokenizer, SPECIALS, (HERE / "template.jinja").read_text("utf-8"))
    write_manifest(manifest, model, network, corpus, arguments.seed)
    print(f"wrote {model.name} ({model.stat().st_size / 1e6:.2f} MB) and {manifest.name}")


if __name__ == "__main__":
    main()
