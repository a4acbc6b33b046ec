"""What the command line trains and measures: text, model and batches from their options, and the run's files."""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers import (
    EmbeddingMLP,
    KGramMLPSeqModel,
    LSTMSeqModel,
    SequenceModel,
    TokenEmbedding,
    TransformerModel,
    context_loss,
    loss_by_position,
    target_log_probabilities,
)
from workbook.batches import CorpusContexts, make_batches
from workbook.config import BatchConfig, ModelConfig, TextConfig
from workbook.counts import KneserNey, mixed_loss, target_windows
from workbook.records import add_to_run
from workbook.text import (
    VOCAB_SIZE,
    CompactTokenizer,
    bits_per_byte,
    cache_folder,
    compact_vocabulary,
    encode_texts,
    load_stories,
    load_tokenizer,
    read_sequences,
    renumber,
)

POSITIONS = [*range(1, 9), *(2**n + 1 for n in range(3, 20))]  # where the spans of the loss by position begin


@dataclass
class Text:
    """What is trained on, what is held out for validation, the tokenizer of both, and what was read, in words."""

    sequences: list[Tensor]
    weights: list[float] | None  # of each sequence, where files and stories are mixed
    validation: list[Tensor]
    tokenizer: Any
    vocab_size: int
    kgram_k: int
    notes: list[str] = field(default_factory=list)

    @functools.cached_property
    def kneser_ney(self) -> tuple[Tensor, Tensor]:
        """Modified Kneser-Ney on validation: each target's probability, and how often its context was seen."""
        windows = target_windows(self.validation, self.kgram_k, self.vocab_size)
        counts = KneserNey(self.sequences, self.vocab_size, self.kgram_k + 1)
        return counts.probability(windows[:, :-1], windows[:, -1]), counts.times_seen(windows[:, :-1])

    @functools.cached_property
    def data_hash(self) -> str:
        """12 hex digits that name the training tokens in a record."""
        return hashlib.sha256(torch.cat(self.sequences).numpy().tobytes()).hexdigest()[:12]


def read_text(config: TextConfig, kgram_k: int, progress: bool = False) -> Text:
    """Sequences, the weight of each where files and stories are mixed, and validation stories. ValueError if none."""
    weight = config.tinystories_weight if config.input_files else 1.0
    if not config.input_files and not config.tinystories_weight:
        raise ValueError("--tinystories_weight 0 leaves no text; name --input_files, or give a weight above 0")
    if config.input_files and weight == 1:
        warnings.warn("--tinystories_weight is 1: no line of --input_files is used", stacklevel=2)
    if config.validation_stories and not weight:
        raise ValueError("--validation_stories needs stories to train on; give --tinystories_weight above 0")
    text = Text([], [], [], load_tokenizer(), VOCAB_SIZE, kgram_k)

    def stories(split: str, limit: int) -> list[Tensor]:
        texts = load_stories(config.stories, split, limit)
        cache = cache_folder() if len(texts) >= 5000 else None  # fewer take less than a second
        return encode_texts(texts, text.tokenizer, config.block_size, cache=cache, progress=progress)

    for share, name in ((1 - weight, "files"), (weight, "stories")):
        if share:
            files = name == "files"
            sequences = (
                read_sequences(config.input_files, text.tokenizer, config.block_size)
                if files
                else stories("train", config.max_stories)
            )
            text.sequences += sequences
            text.weights = [*(text.weights or []), *[share / len(sequences)] * len(sequences)]
            distinct = len({tuple(sequence.tolist()) for sequence in sequences})
            size = f"{len(sequences)} sequences, {distinct} distinct, up to {config.block_size} tokens"
            text.notes.append(f"{name}: {size}; share {share:g}")
    if config.validation_stories:
        text.validation = stories("validation", config.validation_stories)
        text.notes.append(f"validation: {len(text.validation)} stories")
    if not 0 < weight < 1:
        text.weights = None
    return compact(text) if config.compact else text


def compact(text: Text) -> Text:
    """The same text in the ids that occur in training."""
    sequences, ids = compact_vocabulary(text.sequences)
    validation, vocab_size = renumber(text.validation, ids), len(ids)
    unknown = sum(int((sequence == vocab_size).sum()) for sequence in validation)
    note = f"compact vocabulary: {vocab_size} tokens; {unknown} validation tokens lie outside it and do not count"
    tokenizer, notes = CompactTokenizer(text.tokenizer, ids), [*text.notes, note]
    return Text(sequences, text.weights, validation, tokenizer, vocab_size, text.kgram_k, notes)


def build_model(name: str, config: ModelConfig, vocab_size: int, max_length: int = 2048) -> SequenceModel:
    """A model by its name; `max_length` is how far learned positions reach. ValueError for another's table."""
    embed_size, hidden_size = config.embed_size, config.hidden_size or config.embed_size
    tied = config.head == "tied" or (config.head is None and name == "Transformer")
    model: SequenceModel
    if name == "LSTM":
        model = LSTMSeqModel(vocab_size, embed_size, hidden_size, tied=tied)
    elif name == "Transformer":
        sizes = (vocab_size, embed_size, config.n_heads, config.n_blocks)
        options: dict[str, Any] = {"norm": config.norm, "positions": config.positions}
        model = TransformerModel(*sizes, **options, max_length=max_length, tied=tied)
    else:
        k = config.kgram_k
        net = EmbeddingMLP(vocab_size, k, embed_size, hidden_size, config.num_inner_mlp_layers)
        model = KGramMLPSeqModel(net, vocab_size=vocab_size, k=k, chunk_size=config.kgram_chunk_size, tied=tied)
    model.dropout.p = config.dropout
    if config.embedding_from:
        copy_embedding(model, name, config.embedding_from)
    if config.compile:
        for part in compiled_parts(model):
            part.compile(dynamic=True)  # the number of distinct contexts changes from batch to batch
    return model


def compiled_parts(model: SequenceModel) -> list[torch.nn.Module]:
    """What --compile compiles. The LSTM's layer is one fused kernel already."""
    if isinstance(model, KGramMLPSeqModel):
        return [model.net]
    return list(model.blocks) if isinstance(model, TransformerModel) else []


def copy_embedding(model: SequenceModel, name: str, path: Path) -> None:
    """Start from the embedding table in a .safetensors file of another model."""
    tables = [value for key, value in load_file(path).items() if key.endswith("embedding.weight")]
    table = tables[0] if tables else torch.empty(0)
    own = next(module for module in model.modules() if isinstance(module, TokenEmbedding))
    if table.shape != own.weight.shape:
        raise ValueError(
            f"the table in {path} is {tuple(table.shape)}; the {name} needs {tuple(own.weight.shape)}: "
            "give --embed_size and the text that it was trained with"
        )
    own.weight.data.copy_(table)


def choose_batches(name: str, text: Text, config: BatchConfig, seed: int) -> dict[str, Any]:
    """What `train` takes of a model's data: its batches, and the loss on them where it is another one."""
    if name == "k-gram" and config.corpus_contexts is not None:
        if text.weights:
            raise ValueError("--corpus_contexts takes each sequence once; it cannot mix files and stories by weight")
        contexts = CorpusContexts(text.sequences, text.kgram_k, text.vocab_size)
        options: dict[str, Any] = {"power": config.corpus_contexts, "blanks": config.blanks}
        return {"batches": contexts.batches(config.batch_size, seed=seed, **options), "loss_fn": context_loss}
    options = {"weights": text.weights, "similar_lengths": config.similar_lengths}
    return {"batches": make_batches(text.sequences, config.batch_size, blank=text.vocab_size, seed=seed, **options)}


def measure(model: SequenceModel, text: Text) -> tuple[dict[str, float], pd.DataFrame]:
    """Validation loss of the model, of Kneser-Ney of k tokens and of both mixed, in a row; the loss by position."""
    nats = target_log_probabilities(model, text.validation)
    positions = pd.DataFrame(loss_by_position(nats, POSITIONS))
    flat = torch.cat(nats)
    net, (counted, seen) = flat[~flat.isnan()].double().exp(), text.kneser_ney
    half = torch.arange(len(net)) < len(net) // 2
    loss = -net.log().mean().item()
    row = {"validation_loss": loss, "perplexity": math.exp(loss)}
    row["bits_per_byte"] = bits_per_byte(loss, text.validation, text.tokenizer)
    row |= {"kneser_ney_order": text.kgram_k + 1, "kneser_ney_loss": -counted.log().mean().item()}
    row["mixed_loss"], row["mix_weight"] = mixed_loss(net, counted, half, seen)
    return row, positions


def add_tables(name: str, labels: dict[str, Any], **tables: pd.DataFrame) -> None:
    """Enter a run's tables in out/runs: its steps in <name>.csv, others in <name>_<table>.csv."""
    for ending, table in tables.items():
        if len(table):
            labelled = table.assign(**labels)
            columns = [*labels, *table.columns.difference(list(labels), sort=False)]
            add_to_run(labelled[columns], name if ending == "steps" else f"{name}_{ending}")
