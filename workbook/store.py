"""The tokens of a text of any size: encoded once, block by block, kept in flat files, and read as a memory map.

A plain file of unsigned integers is simpler here than an Arrow table, and faster: a block is one write, a sequence one
slice, a kill costs the block in work, and processes share the pages. The folder of a text is named after the SHA-256 of
its file, so another text, or the same one rewritten, is another folder; one of the hub after datasets' fingerprint.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from workbook.files import ENDOFTEXT, HubTexts, TextFile, write_whole
from workbook.sequences import Sequences

TEXT = np.dtype([("tokens", "<u8"), ("bytes", "<u8"), ("hash", "<u8"), ("tenth", "u1")])  # a text: its numbers of …
SMALL = 2**22  # bytes of a file that is encoded anew each time, in less than a second
FORMAT = 1  # of the files; another one is another folder


@dataclass
class TokenStore:
    """Texts as tokens: a flat array of all tokens, and for each text where it begins and what `TEXT` says of it.

    `whole_bytes` are those of all texts of the file, which may hold more (about, where it was not read to its end).
    """

    tokens: np.ndarray
    texts: np.ndarray
    starts: np.ndarray
    whole_bytes: float = 0.0

    @classmethod
    def all_of(cls, tokens: np.ndarray, texts: np.ndarray, read: float = 1.0) -> TokenStore:
        """All texts of arrays that hold the share `read` of a file."""
        lengths = texts["tokens"].astype(np.int64)
        return cls(tokens, texts, lengths.cumsum() - lengths, int(texts["bytes"].sum()) / read)

    def __len__(self) -> int:
        return len(self.texts)

    def chosen(self, numbers: np.ndarray) -> TokenStore:
        """Some of the texts."""
        return TokenStore(self.tokens, self.texts[numbers], self.starts[numbers], self.whole_bytes)

    def sequences(self, block_size: int, windows: bool = False) -> Sequences:
        """The first `block_size` tokens of each text, or with `windows` all of them in turn.

        A window begins with the last token of the one before, so that each token but the first is a target once. Texts
        of fewer than two tokens, nothing to predict, are left out.
        """
        if block_size < 2:
            raise ValueError(f"block_size is {block_size}; expected 2 or more, one token to read and one to predict")
        lengths = self.texts["tokens"].astype(np.int64)
        count = np.maximum(lengths - 1, 0)  # windows of each text
        count = -(-count // (block_size - 1)) if windows else np.minimum(count, 1)
        number = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)  # of a window in its text
        offset = number * (block_size - 1)
        return Sequences(
            self.tokens,
            np.repeat(self.starts, count) + offset,
            np.minimum(np.repeat(lengths, count) - offset, block_size),
        )


def describe_texts(texts: Sequence[str]) -> np.ndarray:
    """`TEXT` of each text, with no tokens yet. The hash is the first 8 bytes of the SHA-256, which two of 2 million
    texts share with a chance of one in ten million. One text in ten is a `tenth`, held out where no other part is.
    """
    rows = []
    for text in texts:
        data = text.encode()
        digest = hashlib.sha256(data).digest()
        rows.append((0, len(data), int.from_bytes(digest[:8], "little"), int.from_bytes(digest, "big") % 10 == 0))
    return np.array(rows, dtype=TEXT)


def first_copies(texts: np.ndarray) -> np.ndarray:
    """The places of distinct texts, in order."""
    return np.sort(np.unique(texts["hash"], return_index=True)[1])


def held_out(texts: np.ndarray) -> np.ndarray:
    """Which texts are for validation: one in ten by its hash, so that copies stay on one side. At least one on each
    side, where two are distinct."""
    distinct = np.unique(texts["hash"])
    out = texts["tenth"] > 0
    if len(distinct) > 1 and out.all():
        return texts["hash"] != distinct[0]
    return out if out.any() or len(distinct) < 2 else texts["hash"] == distinct[0]


def encode_part(texts: Sequence[str], tokenizer: Any) -> list[np.ndarray]:
    """The tokens of each text. `<|endoftext|>`, one token, is where texts that are encoded together come apart."""
    encode = getattr(tokenizer, "encode_to_numpy", tokenizer.encode)
    mark = getattr(tokenizer, "eot_token", None)
    if mark is None or any(ENDOFTEXT in text for text in texts):
        return [np.asarray(encode(text, allowed_special="all")) for text in texts]
    tokens = encode(ENDOFTEXT.join(texts), allowed_special="all")
    ends = np.flatnonzero(tokens == mark)
    return [tokens[begin:end] for begin, end in zip([0, *ends + 1], [*ends, len(tokens)], strict=True)]


def encode_block(texts: Sequence[str], tokenizer: Any, pool: ThreadPoolExecutor) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of texts, one after the other in the smallest integers, and `TEXT` of each: each distinct one once."""
    distinct = list(dict.fromkeys(texts))
    parts = [distinct[begin : begin + 500] for begin in range(0, len(distinct), 500)]
    encoded = [tokens for part in pool.map(lambda part: encode_part(part, tokenizer), parts) for tokens in part]
    if len(distinct) < len(texts):
        known = dict(zip(distinct, encoded, strict=True))
        encoded = [known[text] for text in texts]
    rows = describe_texts(texts)
    rows["tokens"] = [len(tokens) for tokens in encoded]
    tokens = np.concatenate([*encoded, np.empty(0, dtype=np.uint8)])
    return tokens.astype(np.min_scalar_type(tokenizer.n_vocab - 1)), rows


def encode_all(texts: Iterable[str], tokenizer: Any, progress: bool = False) -> TokenStore:
    """The tokens of texts in memory."""
    if isinstance(texts, str):
        raise TypeError("texts is one string; expected a list of texts, each of them a string")
    texts = list(texts)
    blocks = [texts[begin : begin + 10_000] for begin in range(0, len(texts), 10_000)]
    bar = tqdm(blocks, "tokens", unit="text", unit_scale=10_000, leave=False, disable=not progress)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return in_memory([encode_block(block, tokenizer, pool) for block in bar])


def in_memory(blocks: Sequence[tuple[np.ndarray, np.ndarray]], read: float = 1.0) -> TokenStore:
    """What `encode_block` made of one block after the other."""
    tokens, texts = zip(*blocks, strict=True) if blocks else ([np.empty(0, np.uint8)], [np.empty(0, TEXT)])
    return TokenStore.all_of(np.concatenate(tokens), np.concatenate(texts), read)


def encoded_blocks(
    file: TextFile | HubTexts, tokenizer: Any, place: int = 0, progress: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """`encode_block` of each block of a file from `place` on, and the place after it: with all threads, as tiktoken
    releases Python's lock, and a bar."""
    bar = tqdm(None, "tokens", file.total, False, initial=place, unit=file.unit, unit_scale=True, disable=not progress)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for texts, end in file.blocks(place):
            yield *encode_block(texts, tokenizer, pool), end
            bar.update(end - place)
            place = end


def whole_file(texts: np.ndarray) -> bool:
    """That no part of a file is enough: see `load_store`."""
    return False


def load_store(
    file: TextFile | HubTexts,
    tokenizer: Any,
    cache: Path,
    enough: Callable[[np.ndarray], bool] = whole_file,
    progress: bool = False,
) -> TokenStore:
    """The tokens of a file, up to the block after which `enough`, which gets `TEXT` of all texts so far, is true.

    A file of more than `SMALL` bytes is kept in a folder of `cache`, whose tokens are mapped into memory; what is there
    is not encoded again. A folder that cannot be read or written is not needed: a note says so, and the tokens are held
    in memory.
    """
    if file.size > SMALL:
        name = f"{FORMAT} {file.digest} {file.given} {tokenizer.n_vocab}"
        kept = KeptStore(cache / f"tokens-{hashlib.sha256(name.encode()).hexdigest()[:24]}")
        try:
            if not kept.suffices(enough):
                kept.extend(file, tokenizer, enough, progress)
            return kept.store(file)
        except OSError as error:
            warnings.warn(f"the cache {kept.folder} cannot be written ({error}); no more is kept", stacklevel=2)
    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    read = 1.0
    for tokens, texts, place in encoded_blocks(file, tokenizer, progress=progress):
        blocks.append((tokens, texts))
        if enough is not whole_file and enough(np.concatenate([texts for _, texts in blocks])):
            read = share_read(place, file)
            break
    return in_memory(blocks, read)


def share_read(place: int, file: TextFile | HubTexts) -> float:
    """The share of a file before a place; NaN where it is not known how many there are."""
    return place / file.total if file.total else math.nan


class KeptStore:
    """The folder of a text: its tokens and `TEXT` as flat files, and how much of them is whole (state.json)."""

    def __init__(self, folder: Path):
        self.folder, self.tokens, self.texts = folder, folder / "tokens.bin", folder / "texts.bin"

    def state(self, say: bool = False) -> dict[str, Any]:
        """How many texts and tokens are whole, their type, where the next block begins; nothing where it is damaged,
        of which a note tells if it is to be said."""
        new = {"texts": 0, "tokens": 0, "type": "uint8", "place": 0, "complete": False}
        try:
            state = json.loads((self.folder / "state.json").read_text())
            sizes = state["texts"] * TEXT.itemsize, state["tokens"] * np.dtype(state["type"]).itemsize
            if any(path.stat().st_size < size for path, size in zip((self.texts, self.tokens), sizes, strict=True)):
                raise ValueError("it is shorter than it was written")
            return {key: state[key] for key in new}
        except (FileNotFoundError, NotADirectoryError) as error:
            if error.filename == str(self.folder / "state.json"):
                return new
            reason: Exception = error
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error
        if say:
            warnings.warn(
                f"the cache {self.folder} cannot be read ({reason}); the texts are encoded again", stacklevel=4
            )
        return new

    def rows(self, state: dict[str, Any]) -> np.ndarray:
        """`TEXT` of the texts that are whole."""
        return np.fromfile(self.texts, TEXT, state["texts"]) if state["texts"] else np.empty(0, TEXT)

    def suffices(self, enough: Callable[[np.ndarray], bool]) -> bool:
        """Whether what is there is the whole file, or enough of it."""
        state = self.state(say=True)
        return state["complete"] or (state["texts"] > 0 and enough(self.rows(state)))

    def extend(
        self, file: TextFile | HubTexts, tokenizer: Any, enough: Callable[[np.ndarray], bool], progress: bool
    ) -> None:
        """Encode on from where the folder ends; one process at a time. A kill costs the block in work."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            state = self.state()
            texts = self.rows(state)
            if state["complete"] or (len(texts) and enough(texts)):  # another process has been here
                return
            for path in (self.tokens, self.texts) if not len(texts) else ():
                path.unlink(missing_ok=True)  # what others have mapped stays theirs
            with self.tokens.open("ab") as token_file, self.texts.open("ab") as text_file:
                token_file.truncate(state["tokens"] * np.dtype(state["type"]).itemsize)  # half a block
                text_file.truncate(state["texts"] * TEXT.itemsize)
                for tokens, rows, place in encoded_blocks(file, tokenizer, state["place"], progress):
                    for each, array in ((token_file, tokens), (text_file, rows)):
                        each.write(array.tobytes())
                        each.flush()
                        os.fsync(each.fileno())
                    state |= {"texts": state["texts"] + len(rows), "tokens": state["tokens"] + len(tokens)}
                    self.write(state := state | {"place": place, "type": tokens.dtype.name})
                    if enough is not whole_file and enough(texts := np.concatenate([texts, rows])):
                        return
            self.write(state | {"complete": True})

    def write(self, state: dict[str, Any]) -> None:
        write_whole(self.folder / "state.json", lambda path: path.write_text(json.dumps(state)))

    def store(self, file: TextFile | HubTexts) -> TokenStore:
        """The folder's tokens, mapped into memory."""
        state = self.state()
        tokens = np.empty(0, state["type"])
        if state["tokens"]:
            tokens = np.memmap(self.tokens, state["type"], "r", shape=(state["tokens"],))
        return TokenStore.all_of(
            tokens, self.rows(state), 1.0 if state["complete"] else share_read(state["place"], file)
        )


def kept_arrays(folder: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Arrays from a folder, mapped into memory; made and written by the first process that comes, while others wait.

    Where the folder cannot be read or written, a note says so, and they are made in memory.
    """
    names, made = folder / "complete.json", None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            with contextlib.suppress(FileNotFoundError):
                return load_arrays(folder, json.loads(names.read_text()))
            made = make()
            for name, array in made.items():
                write_whole(folder / f"{name}.npy", functools.partial(save_array, array.numpy()))
            write_whole(names, lambda path: path.write_text(json.dumps([*made])))
        return load_arrays(folder, [*made])
    except (OSError, ValueError) as error:
        warnings.warn(f"the cache {folder} cannot be used ({error}); nothing is kept", stacklevel=2)
        for path in folder.glob("*.npy"):
            with contextlib.suppress(OSError):
                path.unlink()  # what others have mapped stays theirs
        return made or make()


def save_array(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:  # a name alone would get the ending .npy
        np.save(file, array)


def load_arrays(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Arrays by name, mapped into memory. FileNotFoundError or ValueError where one is missing or cut short."""
    return {name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in names}
