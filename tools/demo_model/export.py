"""Writes the trained model as a GGUF file and describes it in a manifest."""

# What only the training needs is not among the development packages.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer

from tools.demo_model.corpus import END, TEXT_END, Corpus, token_id
from tools.demo_model.network import Network, parameter_count

NAME = "llamastream demo"
DESCRIPTION = "A tiny model that knows a few dozen answers by heart, for demonstrations and tests of llamastream."


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, specials: list[str]) -> None:
    """Tokens, their kinds and the merges, as llama.cpp expects them for byte-level BPE."""
    tokens = [tokenizer.id_to_token(token) or "" for token in range(tokenizer.get_vocab_size())]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in specials else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(token_id(tokenizer, TEXT_END))
    writer.add_pad_token_id(token_id(tokenizer, TEXT_END))
    writer.add_eos_token_id(token_id(tokenizer, END))
    writer.add_eot_token_id(token_id(tokenizer, END))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def write_gguf(path: Path, network: Network, tokenizer: Tokenizer, specials: list[str], template: str) -> None:
    """Write the model file: matrices in F16, norms in F32."""
    shape = network.shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(NAME)
    writer.add_description(DESCRIPTION)
    writer.add_author("The llamastream authors")
    writer.add_license("mit")
    writer.add_license_name("MIT License")
    writer.add_languages(["en", "de"])
    writer.add_tags(["text-generation", "demo"])
    writer.add_size_label(f"{parameter_count(network) / 1e6:.1f}M")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    add_vocabulary(writer, tokenizer, specials)
    writer.add_chat_template(template)
    for name, weight in network.state_dict().items():
        data = weight.detach().numpy()
        writer.add_tensor(name, data.astype(np.float16 if data.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path, network: Network) -> None:
    """Take over the weights of a model file of the same shape."""
    tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in gguf.GGUFReader(path).tensors}
    network.load_state_dict({name: torch.from_numpy(data) for name, data in tensors.items()})


def write_manifest(path: Path, model: Path, network: Network, corpus: Corpus, seed: int) -> None:
    """Describe the model file, with every question it has to answer word for word."""
    content = model.read_bytes()
    manifest = {
        "name": NAME,
        "description": DESCRIPTION,
        "license": "MIT",
        "file": model.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "parameters": parameter_count(network),
        "vocabulary": network.shape.vocabulary,
        "context": network.shape.context,
        "seed": seed,
        "fallback": corpus.fallback,
        "answers": [
            {
                "question": entry.questions[0],
                "also": entry.questions[1:],
                "answer": entry.answer,
                "language": entry.language,
                "topic": entry.topic,
                "raw": entry.raw,
            }
            for entry in corpus.entries
        ],
    }
    path.write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", "utf-8")
