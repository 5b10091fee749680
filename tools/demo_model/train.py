"""Builds the bundled demo model from the corpus: vocabulary, training, GGUF file and manifest."""

# What only the training needs is not among the development packages.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional

from tools.demo_model.corpus import END, START, TEXT_END, Corpus, vocabulary_texts
from tools.demo_model.export import read_gguf, write_gguf, write_manifest
from tools.demo_model.network import Network, Shape, parameter_count
from tools.demo_model.samples import Row, Sampler

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parents[1] / "src" / "llamastream" / "engine" / "data"
SPECIALS = [TEXT_END, START, END]
# Share of the training that may be rounded to bfloat16.
EXACT = 0.85
# Short rows are cheap and train most of the text; long rows show how crowded a long conversation is.
LENGTHS = ((512, 0.6), (1024, 0.28), (2048, 0.12))


def train_tokenizer(corpus: Corpus, size: int, seed: int) -> Tokenizer:
    """Byte-level BPE that cuts text as llama.cpp does for `tokenizer.ggml.pre` = gpt-2.

    While the merges are learned, a space before a capital letter stands alone. So no token joins the two, and a name
    has the same tokens after a space as inside quotes: a tool call copies it token by token.
    """
    tokenizer = Tokenizer(models.BPE())
    usual = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    lone = pre_tokenizers.Split(Regex(r" (?=\p{Lu})"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lone, usual])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(vocabulary_texts(corpus, seed)), trainer)
    tokenizer.pre_tokenizer = usual
    return tokenizer


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to train, and how fast."""

    steps: int
    minutes: float
    tokens: int
    peak: float

    def progress(self, step: int, seconds: float) -> float:
        """From 0 to 1; whichever of the two limits comes first counts."""
        return max(step / self.steps, seconds / 60 / self.minutes)


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


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first thirtieth, then a cosine down to a hundredth."""
    warm = 1 / 30
    if progress < warm:
        return peak * (progress + 0.001) / (warm + 0.001)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm))))


def train(network: Network, sampler: Sampler, plan: Plan, save: Callable[[], None]) -> None:
    """Train in place, and save now and then, so that an interrupted training leaves a model, too."""
    # Muon learns the matrices of the layers in far fewer steps than AdamW, which does the rest.
    matrices = [weight for name, weight in network.named_parameters() if name.startswith("blk") and weight.dim() == 2]
    others = [
        weight for name, weight in network.named_parameters() if not (name.startswith("blk") and weight.dim() == 2)
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=plan.peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=plan.peak, betas=(0.9, 0.97), weight_decay=0.0),
    ]
    lengths, shares = [length for length, _ in LENGTHS], [share for _, share in LENGTHS]
    choice = random.Random(sampler.rng.random())
    began, seen, shown, right, count = time.monotonic(), 0, 0.0, 0, 0
    step = 0
    while (progress := plan.progress(step, time.monotonic() - began)) < 1:
        length = choice.choices(lengths, shares)[0]
        rows = list(sampler.rows(max(1, plan.tokens // length), length))
        inputs, positions, targets, weights = batch_tensors(rows)
        wanted = weights > 0
        rate = learning_rate(progress, plan.peak)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate
        # Coarse arithmetic is faster; the last part of the training is exact.
        with torch.autocast("cpu", torch.bfloat16, enabled=progress < EXACT):
            logits = network(inputs, positions, wanted, crowd_bias(rows)).float()
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
        step += 1
        if step % 50 == 0:
            seconds = time.monotonic() - began
            print(
                f"step {step:5d}  {progress:6.1%}  loss {shown / 50:.4f}  right {right / count:.4f}  "
                f"rate {rate:.5f}  {seconds:6.0f} s  {seen / seconds:6.0f} tokens/s",
                flush=True,
            )
            shown, right, count = 0.0, 0, 0
        if step % 500 == 0:
            save()
    save()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus.toml", help="questions and answers to learn")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for demo.gguf and demo.json")
    parser.add_argument("--steps", type=int, default=3000, help="training steps")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after this time, even with fewer steps")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--rate", type=float, default=6e-3, help="highest learning rate")
    parser.add_argument("--vocabulary", type=int, default=896, help="size of the vocabulary")
    parser.add_argument("--layers", type=int, default=4, help="number of layers")
    parser.add_argument("--width", type=int, default=128, help="width of the model, a multiple of 32")
    parser.add_argument("--hidden", type=int, default=512, help="width of the feed-forward layers")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--start", type=Path, help="model file to go on from, same vocabulary and sizes")
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
    if arguments.start:
        read_gguf(arguments.start, network)
    sizes = [len(tokenizer.encode(entry.answer).ids) for entry in corpus.entries]
    print(
        f"{len(corpus.entries)} answers with {sum(sizes)} tokens (longest {max(sizes)}), "
        f"{shape.vocabulary} tokens in the vocabulary, {parameter_count(network)} parameters",
        flush=True,
    )
    sampler = Sampler(corpus, tokenizer, shape.context, arguments.seed)
    template = (HERE / "template.jinja").read_text("utf-8")
    arguments.output.mkdir(parents=True, exist_ok=True)
    model, manifest = arguments.output / "demo.gguf", arguments.output / "demo.json"

    def save() -> None:
        write_gguf(model, network, tokenizer, SPECIALS, template)
        write_manifest(manifest, model, network, corpus, arguments.seed)
        print(f"wrote {model.name} ({model.stat().st_size / 1e6:.2f} MB) and {manifest.name}", flush=True)

    train(network, sampler, Plan(arguments.steps, arguments.minutes, arguments.tokens, arguments.rate), save)


if __name__ == "__main__":
    main()
