"""Every option, once: the fields are the command line's options, arguments of `train` and others, and run columns."""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from workbook.files import SEPARATORS, TABLES
from workbook.text import GRAMMARS

C = TypeVar("C", bound="Options")
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
MODELS, NEIGHBOURS = ("LSTM", "k-gram", "Transformer"), ("embedding", "head")
MANY = 10**9
MADE = {*GRAMMARS, "hub"}  # stories that are no file's
STORIES = """builtin, small, hub (TinyStories through datasets), a text file, of which one in ten is for validation, or
a folder with train.txt and valid.txt"""
SEPARATOR = """what lies between the texts of a file: line ends (lines), blank lines (paragraphs) or <|endoftext|>
(guessed from the file); or of which table the column "text" is read: csv, jsonl, parquet"""
PATIENCE = "validations without a lower loss that end a training early (no)"
REPETITION = "divides the odds of tokens that have come before (their logits, where these are above 0)"
VOCABULARY = "tokens: GPT-2's, bytes, or the characters that occur in training"
CONTEXTS = """train the k-gram on the distinct contexts of the whole text, drawn with probability ~ count^X (X: 0.5); an
epoch draws as many as there are (no)"""
NETS = """the k-gram's net: embedding (an MLP over the embeddings of all tokens), pooled (over the newest and sums of
older ones, with residual blocks), or a name in DESIGNS of notebook 02: one-hot, convolution, your own"""
COUNT_MEMORY = """gigabytes for --corpus_contexts or Kneser-Ney counts; where more are needed, a random part of the text
is counted, and a note says which"""
UNIGRAM = """start the head's bias at the log frequency of each token in training: the first loss is the unigram's, not
ln V"""
TABLE_STD = """standard deviation of the token tables at the start (1; 0.5 / sqrt(E) where the head is tied,
1 / sqrt(3 k V) with one-hot)"""
BFLOAT16 = """compute matrix products in bfloat16, which processors without instructions for it do slowly; auto:
measure both for a second at the start and take the faster"""


NEEDS: dict[str, Callable[[Any], object]] = {  # what an option acts with, and whether a configuration has it
    "--models Transformer": lambda c: "Transformer" in c.model.models,
    "--models k-gram": lambda c: "k-gram" in c.model.models,
    "--models k-gram or LSTM": lambda c: {"k-gram", "LSTM"} & {*c.model.models},
    "--models k-gram or Transformer": lambda c: {"k-gram", "Transformer"} & {*c.model.models},
    "--models k-gram or --validation_stories": lambda c: "k-gram" in c.model.models or c.text.validation_stories,
    "--input_files": lambda c: c.text.input_files,
    "stories": lambda c: c.text.tinystories_weight or not c.text.input_files,
    "a text file": lambda c: (
        {*c.text.input_files * (c.text.tinystories_weight < 1), NEEDS["stories"](c) and c.text.stories} - {*MADE, False}
    ),
    "--corpus_contexts and --kgram_k above 1": lambda c: (
        NEEDS["--models k-gram"](c) and c.batch.corpus_contexts is not None and c.model.kgram_k > 1
    ),
    "a model with an embedding, or no --hidden_size": lambda c: (
        {*c.model.models} - {"k-gram"} or c.model.kgram_net != "one-hot" or c.model.hidden_size is None
    ),
    "another vocabulary than characters": lambda c: c.text.vocabulary != "characters",
    "batches of sequences": lambda c: {*c.model.models} - {"k-gram"} or c.batch.corpus_contexts is None,
    "--corpus_contexts or --validation_stories": lambda c: (
        (NEEDS["--models k-gram"](c) and c.batch.corpus_contexts is not None) or c.text.validation_stories
    ),
    "no other budget": lambda c: not (c.training.steps or c.training.budget_seconds or c.training.budget_tokens),
    "--validation_stories": lambda c: c.text.validation_stories,
    "--max_new_tokens above 0": lambda c: c.sample.max_new_tokens,
    "--output_dir": lambda c: c.output.output_dir,
    "--output_dir or --record": lambda c: c.output.output_dir or c.output.record,
}


def option(default: Any, help: str, low: float = -math.inf, high: float = math.inf, above: bool = False, **more: Any):
    """A field: `low` and `high` bound a number, `above` leaves `low` itself out; `more`: choices, const, and in NEEDS
    what it acts with."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "above": above, **more})


def expected(value: Any, rule: Mapping[str, Any]) -> str:
    """The range of an option, in words, where a number lies outside it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    low, high, above = rule["low"], rule["high"], rule["above"]
    finite = isinstance(value, int) or math.isfinite(value)  # a whole number may be too large for a float
    if finite and low <= value <= high and not (above and value == low):
        return ""
    start = f"above {low:g}" if above else f"{low:,g}"
    return f"expected {start}" + (f" to {high:,}" if high < math.inf else "" if above else " or more")


@dataclass(frozen=True)
class Options:
    """What the dataclasses below have in common: a value out of its range is a ValueError."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value, rule = getattr(self, each.name), each.metadata
            for one in value if isinstance(value, tuple) else (value,):
                if words := expected(one, rule):
                    raise ValueError(f"{each.name} is {one}; {words}")
                if one is not None and "choices" in rule and one not in rule["choices"]:
                    raise ValueError(f"{each.name} is {one!r}; expected one of {', '.join(rule['choices'])}")


@dataclass(frozen=True)
class TextConfig(Options):
    """text"""

    input_files: tuple[str, ...] = option((), "files of sequences; also looked up in data/")
    tinystories_weight: float = option(
        0.5, "chance of a story, not a line of a file; without files all are", 0, 1, needs="--input_files"
    )
    stories: str = option("builtin", STORIES, needs="stories")
    max_stories: int = option(2000, "stories to train on", 1, MANY, needs="stories")
    validation_stories: int = option(
        0, "stories held out to measure the loss on, beside Kneser-Ney counts", 0, MANY, needs="stories"
    )
    separator: str | None = option(None, SEPARATOR, choices=(*SEPARATORS, *TABLES), needs="a text file")
    compact: bool = option(
        False,
        "a vocabulary of only the tokens that occur in training; others are no targets",
        needs="another vocabulary than characters",
    )
    block_size: int = option(128, "tokens of a sequence, from its start", 2, 10**6)
    windows: bool = option(False, "read a text to its end, in windows of --block_size tokens")
    vocabulary: str = option("gpt2", VOCABULARY, choices=("gpt2", "bytes", "characters"))


@dataclass(frozen=True)
class ModelConfig(Options):
    """models"""

    models: tuple[str, ...] = option(("LSTM", "k-gram"), "which to train, one after the other", choices=MODELS)
    embed_size: int = option(
        64,
        "width of an embedding, and of the Transformer throughout",
        1,
        10**6,
        needs="a model with an embedding, or no --hidden_size",
    )
    hidden_size: int | None = option(
        None, "width of the hidden layers of k-gram and LSTM (E)", 1, 10**6, needs="--models k-gram or LSTM"
    )
    kgram_k: int = option(3, "tokens of context", 1, 1000, needs="--models k-gram or --validation_stories")
    kgram_net: str = option("embedding", NETS, needs="--models k-gram")
    kgram_chunk_size: int | None = option(
        None, "contexts that go through the net at once (all)", 1, MANY, needs="--models k-gram"
    )
    num_inner_mlp_layers: int = option(1, "inner layers of the k-gram's net", 0, 1000, needs="--models k-gram")
    n_heads: int = option(
        4, "attention heads of the Transformer; E must be a multiple of 2 N", 1, 1000, needs="--models Transformer"
    )
    n_blocks: int = option(2, "blocks of the Transformer", 1, 1000, needs="--models Transformer")
    norm: str = option(
        "pre", "RMSNorm before or after each part", choices=("pre", "post"), needs="--models Transformer"
    )
    positions: str = option(
        "rotary", "of the Transformer", choices=("rotary", "learned", "none"), needs="--models Transformer"
    )
    short_conv: bool = option(
        False, "the Transformer's queries, keys and values mix those of three tokens", needs="--models Transformer"
    )
    qk_norm: bool = option(False, "norm the Transformer's queries and keys", needs="--models Transformer")
    head: str | None = option(None, "shares the embedding's table (the Transformer's) or not", choices=("tied", "free"))
    table_std: float | None = option(None, TABLE_STD, 0, above=True)
    unigram_bias: bool = option(False, UNIGRAM)
    embedding_from: Path | None = option(None, "start from the embedding table in this .safetensors file (no)")
    dropout: float = option(0.0, "share of the last hidden state that training drops", 0, 0.99)
    compile: bool = option(
        False,
        "compile the k-gram's net and the Transformer's blocks; the first steps take longer",
        needs="--models k-gram or Transformer",
    )


@dataclass(frozen=True)
class BatchConfig(Options):
    """batches"""

    batch_size: int = option(32, "sequences, or contexts, a step", 1, MANY)
    count_memory: float = option(6.0, COUNT_MEMORY, 0, above=True, needs="--corpus_contexts or --validation_stories")
    similar_lengths: bool = option(
        False, "batches of sequences of about the same length: less padding", needs="batches of sequences"
    )
    corpus_contexts: float | None = option(None, CONTEXTS, 0, 1, const=0.5, needs="--models k-gram")
    blanks: float = option(
        0.0,
        "share of --corpus_contexts that show only their newest tokens: regularises",
        0,
        1,
        needs="--corpus_contexts and --kgram_k above 1",
    )


@dataclass(frozen=True)
class TrainingConfig(Options):
    """training"""

    # The first budget that is used up ends a training; it also drives the schedule.

    epochs: int = option(3, "passes over the text, where no other budget is given", 1, MANY, needs="no other budget")
    steps: int | None = option(None, "budget: updates (no)", 1, MANY)
    budget_seconds: float | None = option(None, "budget: seconds of each model's steps (no)", 0, above=True)
    budget_tokens: int | None = option(None, "budget: real targets (no)", 1)
    max_steps_per_epoch: int | None = option(None, "cut each pass over the text short (no)", 1, MANY)
    optimizer: str = option("adamw", "muon: for the matrices between embedding and head", choices=("adamw", "muon"))
    learning_rate: float = option(1e-3, "step size of the optimizer", 0, above=True)
    schedule: str = option("constant", "cosine ends at a tenth of the rate", choices=("constant", "cosine"))
    warm_up_share: float | None = option(None, "of training, the rate rising (0.03 with cosine, else 0)", 0, 1)
    weight_decay: float = option(0.0, "of matrices", 0)
    clip: float | None = option(None, "largest gradient norm (no)", 0, above=True)
    bfloat16: str = option("off", BFLOAT16, choices=("off", "on", "auto"), const="on")
    seed: int = option(0, "of initial weights, data order and samples", 0, 2**63 - 1)
    patience: int | None = option(None, PATIENCE, 1, MANY, needs="--validation_stories")
    untimed_steps: int = option(2, "first steps that no rate counts, as they warm up the machine", 0, MANY)
    log_every: int = option(1, "steps that a row of losses sums up", 1, MANY, needs="--output_dir or --record")
    save_every: int = option(100, "steps between checkpoints", 1, MANY, needs="--output_dir")
    validate_every: int | None = option(
        None, "steps between validations; the best weights are kept (no)", 1, MANY, needs="--validation_stories"
    )


@dataclass(frozen=True)
class SampleConfig(Options):
    """samples"""

    prompt: str | None = option(None, "what samples go on from (the opening of the text)")
    samples: int = option(1, "samples for each --top_p", 1, MANY)
    max_new_tokens: int = option(20, "new tokens of a sample", 0, 10**6)
    top_p: tuple[float, ...] = option(
        (0.95, 1.0),
        "a sample per nucleus of this mass, after a greedy one",
        0,
        1,
        True,
        needs="--max_new_tokens above 0",
    )
    top_k: int | None = option(
        None, "draw from the K most probable tokens (all)", 1, 10**6, needs="--max_new_tokens above 0"
    )
    temperature: float = option(
        1.0, "divides the logits before a draw", 0, above=True, needs="--max_new_tokens above 0"
    )
    repetition_penalty: float = option(1.0, REPETITION, 0, above=True, needs="--max_new_tokens above 0")
    stop: str | None = option(None, "end a sample before this text (no)", needs="--max_new_tokens above 0")
    monosemantic_enabled: str | None = option(
        None,
        "show each new token with its nearest neighbours in this table (no)",
        choices=NEIGHBOURS,
        const="embedding",
        needs="--max_new_tokens above 0",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, text in {"prompt": self.prompt, "stop": self.stop}.items():
            if text == "":
                raise ValueError(
                    f"argument --{name}: it is empty; expected a text of one token or more, or none at all"
                )
            if text and any("\ud800" <= character <= "\udfff" for character in text):  # from bytes that are no UTF-8
                raise ValueError(f"argument --{name}: it is no UTF-8 text")
        if self.stop:  # a shell gives \n as two characters
            object.__setattr__(self, "stop", self.stop.replace(r"\n", "\n").replace(r"\t", "\t"))


@dataclass(frozen=True)
class MachineConfig(Options):
    """machine"""

    device_id: str = option("auto", "cpu, cuda:0, mps or auto")
    onednn_linear: bool = option(True, "oneDNN's product where no gradient is needed (CPU)")
    keep_memory: bool = option(True, "keep freed memory for the next tensors (Linux)")
    large_pages: bool = option(True, "pages of 2 MiB under large tensors (Linux)")


@dataclass(frozen=True)
class OutputConfig(Options):
    """output"""

    output_dir: Path | None = option(None, "save losses (.csv), weights (.safetensors) and checkpoints here (no)")
    resume: bool = option(False, "go on from the checkpoints in --output_dir, where there are any")
    record: str | None = option(None, "add losses, run rows, losses by position and samples to out/runs/TEXT*.csv (no)")
    label: str | None = option(None, "the model's name in records (that of --models)", needs="--output_dir or --record")


def option_tables() -> list[dict[str, Any]]:
    """The options of the command line by dataclass, as text: `title` and `rows` of option, help and needs."""
    groups = (TextConfig, ModelConfig, BatchConfig, TrainingConfig, SampleConfig, MachineConfig, OutputConfig)
    return [{"title": (group.__doc__ or "").split("\n")[0], "rows": list(option_rows(group))} for group in groups]


def option_rows(group: type[Options]) -> Iterator[dict[str, str]]:
    """Of each option how it is given, what it does with its default, and what it acts with."""
    hints = get_type_hints(group)
    for each in fields(group):
        how = argument(each, hints[each.name])
        value = "" if hints[each.name] is bool else how["metavar"] or "|".join(each.metadata["choices"])
        name = f"--{'[no-]' if how.get('action') is argparse.BooleanOptionalAction else ''}{each.name}"
        given = f"{name} [{value}]" if how.get("nargs") == "?" else f"{name} {value}".rstrip()
        words = " ".join(how["help"].split()).replace("|", "\\|")
        yield {"option": given.replace("|", "\\|"), "help": words, "needs": each.metadata.get("needs", "")}


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line, exit code 2."""

    def error(self, message: str):
        line = message.replace("\n", r"\n")  # of an argument that is quoted
        line = line if len(line) <= 500 else f"{line[:300]} … {line[-150:]}"
        self.exit(2, f"{self.prog}: error: {line} (see --help)\n")


def make_parser(*configs: type[Options], only_given: bool = False, **options: Any) -> Parser:
    """A parser with one group of options for each dataclass; `only_given`: what is not given is no attribute.

    `options` go to `argparse.ArgumentParser`.
    """
    parser = Parser(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
    for config in configs:
        add_options(parser, config, {"default": argparse.SUPPRESS} if only_given else {})
    return parser


def add_options(parser: argparse.ArgumentParser, config: type[Options], more: Mapping[str, Any] = {}) -> None:  # noqa: B006
    """A group with the options of a dataclass; `more` goes to each of them."""
    group, hints = parser.add_argument_group((config.__doc__ or "").split("\n")[0]), get_type_hints(config)
    for each in fields(config):
        group.add_argument(f"--{each.name}", **argument(each, hints[each.name]) | dict(more))


def argument(each: Field, hint: Any) -> dict[str, Any]:
    """What `add_argument` takes for a field. The help ends with the default, or says it itself."""
    rule, default = each.metadata, each.default
    if hint is bool:
        action = argparse.BooleanOptionalAction if default else "store_true"
        return {"help": rule["help"], "default": default, "action": action}
    kind = next((kind for kind in get_args(hint) if kind in METAVARS), hint)

    def parse(text: str):  # of choices, case and hyphens do not matter
        if "choices" in rule:
            plain = {choice.lower().replace("-", ""): choice for choice in rule["choices"]}
            return plain.get(text.lower().replace("-", ""), text)
        value = kind(text)
        if words := expected(value, rule):
            raise argparse.ArgumentTypeError(f"{text} is out of range; {words}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # in argparse's error
    choices = rule.get("choices")
    found = {"default": default, "type": parse, "choices": choices, "metavar": None if choices else METAVARS[kind]}
    if isinstance(default, tuple):
        found["nargs"] = "+" if default else "*"
        default = " ".join(map(str, default))
    elif "const" in rule:
        found |= {"nargs": "?", "const": rule["const"]}
    return found | {"help": rule["help"] if default in (None, "") else f"{rule['help']} ({default})"}


def read_config(config: type[C], args: argparse.Namespace) -> C:
    """The part of the parsed options that belongs to one dataclass."""
    values = {each.name: getattr(args, each.name) for each in fields(config)}
    return config(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def without_effect(config: Iterable[Options], given: Iterable[str]) -> list[str]:
    """Which of the given options change nothing in a configuration (one of each dataclass), and what they act with."""
    needs = {each.name: each.metadata["needs"] for part in config for each in fields(part) if "needs" in each.metadata}
    return [f"--{name} (needs {needs[name]})" for name in needs if name in given and not NEEDS[needs[name]](config)]


def text_columns(*configs: type[Options]) -> tuple[str, ...]:
    """Those of the columns of `run_columns` that hold text."""
    hints = {name: hint for config in configs for name, hint in get_type_hints(config).items()}
    return tuple(name for name, hint in hints.items() if {str, Path} & {hint, *get_args(hint)})


def run_columns(*configs: Options) -> dict[str, Any]:
    """The fields of configurations as columns of a run row: several values as one text, a path as its name."""
    row = {each.name: getattr(config, each.name) for config in configs for each in fields(config)}
    row |= {name: value.name for name, value in row.items() if isinstance(value, Path)}
    return row | {name: " ".join(map(str, value)) for name, value in row.items() if isinstance(value, tuple)}
