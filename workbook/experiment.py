"""What the command line trains and measures: data, model and batches from their options, and the run's files."""

import dataclasses
import functools
import json
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model
from torch import Tensor

import helpers
from helpers import SequenceModel
from workbook import text
from workbook.batches import CorpusContexts, make_batches
from workbook.config import BatchConfig, ModelConfig, TextConfig
from workbook.counts import KneserNey, mixed_loss, target_windows
from workbook.notebooks import notebook_module
from workbook.records import ENDINGS, add_to_run
from workbook.sequences import Sequences
from workbook.store import FORMAT, TokenStore, first_copies

NETS = {"embedding": helpers.EmbeddingMLP, "pooled": helpers.PooledMLP}
MANY_TOKENS = 2**24  # of which the contexts are kept, as it takes seconds to count them
POSITIONS = [*range(1, 9), *(2**n + 1 for n in range(3, 20))]  # where the spans of the loss by position begin


@dataclass
class Data:
    """What is trained on, what is held out for validation, the tokenizer of both, and what was read, in words."""

    sequences: Sequences
    weights: Tensor | None  # of each sequence, where files and stories are mixed
    validation: Sequences
    tokenizer: Any
    vocab_size: int
    kgram_k: int
    vocabulary: str = "gpt2"
    count_memory: float = math.inf  # bytes
    opening: str = ""  # the first words of the text, which samples go on from
    notes: list[str] = field(default_factory=list)

    @property
    def halves(self) -> tuple[Sequences, Sequences]:
        """Validation stories to choose by while training and fit mixtures on, and the others, which losses are of."""
        middle = len(self.validation) // 2
        return self.validation[:middle], self.validation[middle:]

    def targets(self, sequences: Sequences) -> int:
        """How many tokens of these are to be predicted."""
        return int(sequences.targets().counts(self.vocab_size).sum())

    @functools.cached_property
    def kneser_ney(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Modified Kneser-Ney on validation: each target's probability, and what of its context was seen, how often."""
        windows = target_windows(self.validation, self.kgram_k, self.vocab_size)
        counts = KneserNey(self.sequences, self.vocab_size, self.kgram_k + 1, memory=self.count_memory)
        return counts.probability(windows[:, :-1], windows[:, -1]), counts.longest_seen(windows[:, :-1])

    @functools.cached_property
    def data_hash(self) -> str:
        """12 hex digits that name the training tokens in a record."""
        return text.tokens_hash(self.sequences)


def weight_of_stories(config: TextConfig) -> float:
    """The share of stories beside files. ValueError where no text is left, or none for validation."""
    weight = config.tinystories_weight if config.input_files else 1.0
    if not config.input_files and not config.tinystories_weight:
        raise ValueError("--tinystories_weight 0 leaves no text; name --input_files, or give a weight above 0")
    if config.input_files and weight == 1:
        warnings.warn("--tinystories_weight is 1: no line of --input_files is used", stacklevel=3)
    if config.validation_stories and not weight:
        raise ValueError("--validation_stories needs stories to train on; give --tinystories_weight above 0")
    return weight


def share_used(store: TokenStore, tokenizer: Any, config: TextConfig) -> float:
    """The share of a text, in bytes, that is in the sequences of these stories."""
    sizes, lengths = store.texts["bytes"], store.texts["tokens"]
    cut = np.zeros(len(store), dtype=bool) if config.windows else lengths > config.block_size
    counts = store.chosen(cut).sequences(config.block_size).counts(tokenizer.n_vocab)
    return (int(sizes[~cut & (lengths > 1)].sum()) + text.count_bytes(counts, tokenizer)) / store.whole_bytes


def describe(source: str, store: TokenStore, sequences: Sequences, config: TextConfig) -> str:
    """How many sequences were read from a file or stories, of how many distinct texts, and what separates them."""
    separator = text.separator_of(source, config.separator)
    separated = f"; separated by: {separator}" if separator else ""
    distinct = len(first_copies(store.texts))
    return f"{len(sequences)} sequences (distinct texts: {distinct}), up to {config.block_size} tokens{separated}"


def make_compact(data: Data) -> None:
    """The same text in the ids that occur in training."""
    data.sequences, ids = text.compact_vocabulary(data.sequences)
    data.validation, data.vocab_size = text.renumber(data.validation, ids), len(ids)
    data.tokenizer = text.CompactTokenizer(data.tokenizer, ids)
    unknown = sum(int((sequence == len(ids)).sum()) for sequence in data.validation)
    outside = f"{unknown} validation tokens lie outside it and do not count"
    data.notes.append(f"compact vocabulary: {len(ids)} tokens; {outside}")


def add_source(data: Data, source: str, store: TokenStore, config: TextConfig) -> None:
    """A file or stories into `data`, with a note on what part of them is used."""
    sequences = store.sequences(config.block_size, config.windows)
    if not len(sequences):
        raise ValueError(f"{source}: no text has two tokens, one to read and one to predict; give other text")
    data.sequences += sequences
    openings = (data.tokenizer.decode(sequence.tolist()).rstrip("\ufffd") for sequence in sequences[:100])
    data.opening = text.common_opening(filter(None, openings))  # without a character that is cut in two
    used = share_used(store, data.tokenizer, config)
    found = describe(source, store, sequences, config)
    share = "" if math.isnan(used) else f", {used:.1%} of the text"  # of a table that was not read to its end
    data.notes.append(f"{text.text_name(source)}: {found}{share}")
    if used < 0.5:
        first = f"at most {config.block_size} tokens of each of {len(store)} texts"
        data.notes.append(f"note: only {used:.1%} of the text is used, {first}; --windows, --max_stories use more")


def read_text(config: TextConfig, kgram_k: int, count_memory: float = math.inf, progress: bool = False) -> Data:
    """Sequences, the weight of each where files and stories are mixed, and validation stories. ValueError if none.

    `count_memory`, in bytes, is what the counts of the text may take.
    """
    weight = weight_of_stories(config)
    tokenizer, none = text.make_tokenizer(config.vocabulary), Sequences.of([])
    data = Data(none, None, none, tokenizer, tokenizer.n_vocab, kgram_k, config.vocabulary, count_memory)
    options: dict[str, Any] = {"separator": config.separator, "progress": progress}
    for path in config.input_files if weight < 1 else ():
        add_source(data, path, text.encode_source(path, tokenizer, **options), config)
    lines = len(data.sequences)
    if weight:
        options |= {"split": "train", "limit": config.max_stories}
        add_source(data, config.stories, text.encode_source(config.stories, tokenizer, **options), config)
    if 0 < lines < len(data.sequences):
        stories = len(data.sequences) - lines
        shares = torch.tensor([(1 - weight) / lines, weight / stories], dtype=torch.float64)
        data.notes.append(f"a sequence is a story with a chance of {weight:g}, else of the files")
        data.weights = shares.repeat_interleave(torch.tensor([lines, stories]))
    if config.validation_stories:
        options |= {"split": "validation", "limit": config.validation_stories}
        held_out = text.encode_source(config.stories, tokenizer, **options)
        data.validation = held_out.sequences(config.block_size, config.windows)
        if len(data.validation) < 2:
            raise ValueError("one validation story cannot be split in two; give 2 --validation_stories, or more")
        data.notes.append("validation: {} stories to choose by and {} to report on".format(*map(len, data.halves)))
    if config.compact or config.vocabulary == "characters":  # of the code points few occur
        make_compact(data)
    if data.validation and not all(map(data.targets, data.halves)):
        raise ValueError("half of the validation stories hold no token of the vocabulary to predict; give more of them")
    return data


def net_class(name: str) -> Callable[..., torch.nn.Module]:
    """A net of the k-gram by its name: one of helpers.py, or of DESIGNS in notebook 02. ValueError for another name."""
    if name in NETS:
        return NETS[name]
    designs = notebook_module("02_kgram_architectures", "imports", "design", "export").DESIGNS
    if name not in designs:
        known = ", ".join(dict.fromkeys([*NETS, *designs]))
        raise ValueError(
            f"--kgram_net is {name!r}; expected one of {known}, or a name entered in DESIGNS of notebook 02"
        )
    return designs[name]


def build_model(name: str, config: ModelConfig, vocab_size: int, max_length: int = 2048) -> SequenceModel:
    """A model by its name; `max_length` is how far learned positions reach. ValueError for another's table."""
    embed_size, hidden_size = config.embed_size, config.hidden_size or config.embed_size
    tied = config.head == "tied" or (config.head is None and name == "Transformer")
    if name == "LSTM":
        model: SequenceModel = helpers.LSTMSeqModel(vocab_size, embed_size, hidden_size, tied=tied)
    elif name == "Transformer":
        options: dict[str, Any] = {"norm": config.norm, "positions": config.positions, "max_length": max_length}
        options |= {"short_conv": config.short_conv, "qk_norm": config.qk_norm}
        model = helpers.TransformerModel(vocab_size, embed_size, config.n_heads, config.n_blocks, tied=tied, **options)
    else:
        k = config.kgram_k
        net = net_class(config.kgram_net)(vocab_size, k, embed_size, hidden_size, config.num_inner_mlp_layers)
        model = helpers.KGramMLPSeqModel(net, vocab_size=vocab_size, k=k, chunk_size=config.kgram_chunk_size, tied=tied)
    model.dropout.p = config.dropout
    token_tables = [module for module in model.modules() if isinstance(module, helpers.TokenEmbedding)]
    if config.table_std:
        for module in token_tables:
            torch.nn.init.normal_(module.weight, std=config.table_std)
    if config.embedding_from:
        if not token_tables:
            raise ValueError(f"--embedding_from: the {name}'s net has no TokenEmbedding to fill")
        table, own = embedding_table(config.embedding_from), token_tables[0].weight
        if table.shape != own.shape:
            sizes = f"the table in {config.embedding_from} is {tuple(table.shape)}; the {name} needs {tuple(own.shape)}"
            raise ValueError(f"{sizes}: give --embed_size and the text that it was trained with")
        own.data.copy_(table)
    if config.compile:
        for part in compiled_parts(model):
            part.compile(dynamic=True)  # the number of distinct contexts changes from batch to batch
    return model


def describe_weights(name: str, config: ModelConfig, data: Data, max_length: int) -> dict[str, str]:
    """What a file of weights says of its model and its tokens, for `load_trained`."""
    options = dataclasses.asdict(config)
    for only_at_first in ("models", "embedding_from", "table_std", "compile"):
        del options[only_at_first]
    ids = data.tokenizer.ids if isinstance(data.tokenizer, text.CompactTokenizer) else None
    made = {"model": name, "options": options, "vocab_size": data.vocab_size, "max_length": max_length}
    return {"pico-llm": json.dumps(made | {"vocabulary": data.vocabulary, "ids": ids, "opening": data.opening})}


def load_trained(path: str | Path) -> tuple[SequenceModel, Any, str]:
    """A model that a training with --output_dir has saved, its tokenizer, and the opening of its text. ValueError for
    other files."""
    try:
        with safe_open(path, "pt") as file:
            made = json.loads((file.metadata() or {})["pico-llm"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} holds no trained model; expected a .safetensors file of --output_dir") from error
    model = build_model(made["model"], ModelConfig(**made["options"]), made["vocab_size"], made["max_length"])
    load_model(model, path)
    tokenizer = text.make_tokenizer(made["vocabulary"])
    if made["ids"]:
        tokenizer = text.CompactTokenizer(tokenizer, torch.tensor(made["ids"]))
    return model.eval(), tokenizer, made["opening"]


def embedding_table(path: Path) -> Tensor:
    """The embedding table in a file of weights. ValueError where it is none, or holds none."""
    with path.open("rb"):  # a missing or forbidden one says so by itself
        pass
    try:
        tables = [value for key, value in load_file(path).items() if key.endswith("embedding.weight")]
    except SafetensorError as error:
        raise ValueError(f"{path} holds no weights ({error}); expected a .safetensors file of --output_dir") from error
    return tables[0] if tables else torch.empty(0)


def start_from_frequencies(model: SequenceModel, sequences: Iterable[Tensor]) -> None:
    """Set the head's bias to the log frequency of each token among the targets; one that is none counts as a tenth."""
    seen = Sequences.of(sequences).targets().counts(model.vocab_size).double().clamp(min=0.1)
    model.head.bias.data.copy_((seen / seen.sum()).log())


def compiled_parts(model: SequenceModel) -> list[torch.nn.Module]:
    """What --compile compiles. The LSTM's layer is one fused kernel already."""
    if isinstance(model, helpers.KGramMLPSeqModel):
        return [model.net]
    return list(model.blocks) if isinstance(model, helpers.TransformerModel) else []


def choose_batches(name: str, data: Data, config: BatchConfig, seed: int) -> dict[str, Any]:
    """What `train` takes of a model's data: its batches, and the loss on them where it is another one."""
    if name == "k-gram" and config.corpus_contexts is not None:
        memory, kept = 1e9 * config.count_memory, None
        if int(data.sequences.lengths.sum()) > MANY_TOKENS:
            of = [data.data_hash, len(data.sequences), data.kgram_k, data.vocab_size, f"{config.count_memory:g}"]
            kept = text.cache_folder() / "-".join(map(str, ["contexts", FORMAT, *of]))
        contexts = CorpusContexts(data.sequences, data.kgram_k, data.vocab_size, memory, kept)
        options: dict[str, Any] = {"power": config.corpus_contexts, "blanks": config.blanks}
        return {"batches": contexts.batches(config.batch_size, seed=seed, **options), "loss_fn": helpers.context_loss}
    options = {"weights": data.weights, "similar_lengths": config.similar_lengths}
    return {"batches": make_batches(data.sequences, config.batch_size, blank=data.vocab_size, seed=seed, **options)}


def measure(model: SequenceModel, data: Data) -> tuple[dict[str, float], pd.DataFrame]:
    """Loss of the model, of Kneser-Ney of k tokens and of both mixed, in a row; the loss by position.

    All on the second half of the validation stories; the weights of the mixture are fitted on the first.
    """
    nats = helpers.target_log_probabilities(model, data.validation)
    flat, (tuning, reported) = torch.cat(nats), data.halves
    net, (counted, seen) = flat[~flat.isnan()].double().exp(), data.kneser_ney
    first = torch.arange(len(net)) < data.targets(tuning)
    loss = -net[~first].log().mean().item()
    row = {"validation_loss": loss, "perplexity": helpers.perplexity(loss)}
    row["bits_per_byte"] = text.bits_per_byte(loss, reported, data.tokenizer)
    row |= {"kneser_ney_order": data.kgram_k + 1, "kneser_ney_loss": -counted[~first].log().mean().item()}
    row["mixed_loss"], row["mix_weight"] = mixed_loss(net, counted, first, seen)
    return row, pd.DataFrame(helpers.loss_by_position(nats[len(tuning) :], POSITIONS))


def add_tables(name: str, labels: dict[str, Any], *tables: pd.DataFrame) -> None:
    """Enter a run's tables in out/runs: steps, run rows, losses by position, samples, in a file each (`ENDINGS`)."""
    for ending, table in zip(ENDINGS, tables, strict=True):
        if len(table):
            labelled = pd.DataFrame(labels, table.index).join(table.drop(columns=[*labels], errors="ignore"))
            add_to_run(labelled, f"{name}{ending}")
