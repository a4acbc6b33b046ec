"""Texts of any size: read in blocks, encoded once, kept in files, viewed as sequences, counted within a budget."""

import hashlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ROOT

from workbook import batches, files, sequences, store, text
from workbook.batches import CorpusContexts, Draws, count_contexts, make_batches
from workbook.counts import KneserNey, WindowCounts, target_windows
from workbook.files import ENDOFTEXT, SEPARATORS, TextFile
from workbook.sequences import Sequences
from workbook.text import encode_source, join_halves, load_stories, write_stories

BREAKS = ["\n", "\n\n", "\r\n", "\n \t\n", "\n\u3000\n", "\r", "\u2028", " "]
PIECES = ["a", "Bee sea.", "é🦜", *BREAKS, ENDOFTEXT, "<|end", "\ufeff"]
few = settings(deadline=None, max_examples=150)


@pytest.fixture
def blocks_of(monkeypatch):
    """Make files be read, and sequences be worked on, in blocks of so many bytes or tokens."""

    def change(size):
        monkeypatch.setattr(files, "BLOCK", size)
        monkeypatch.setattr(sequences, "BLOCK", size)

    return change


def texts_of(path, separator=None):
    return [text for block, _ in TextFile(path, separator).blocks() for text in block]


# ---------------------------------------------------------------- files, in blocks


@few
@given(st.lists(st.sampled_from(PIECES), max_size=30), st.integers(1, 40), st.sampled_from([None, *SEPARATORS]))
def test_blocks_hold_the_texts_of_the_whole_file(tmp_path_factory, pieces, size, separator):
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes("".join(pieces).encode())
    usual = files.BLOCK
    whole, guessed = texts_of(path, separator), TextFile(path, separator).separator
    try:
        files.BLOCK = size
        assert TextFile(path, separator).separator == guessed
        assert texts_of(path, separator) == whole
        places = [place for _, place in TextFile(path, separator).blocks()]
        assert places == sorted(set(places)) and (not pieces or places[-1] == path.stat().st_size)
        for place in places:  # going on at any of them gives the rest
            rest = [text for block, _ in TextFile(path, separator).blocks(place) for text in block]
            assert rest == whole[len(whole) - len(rest) :]
    finally:
        files.BLOCK = usual


@pytest.mark.parametrize("kind", files.TABLES)
def test_tables_are_read_in_blocks_and_gone_on_with(tmp_path, kind):
    table = pd.DataFrame({"text": [f"text {number}" for number in range(25_000)]})
    write = {"csv": table.to_csv, "jsonl": lambda path: table.to_json(path, orient="records", lines=True)}
    write.get(kind, table.to_parquet)(tmp_path / "table")
    blocks = list(TextFile(tmp_path / "table", kind).blocks())
    assert [place for _, place in blocks] == [10_000, 20_000, 25_000]
    assert [text for block, _ in blocks for text in block] == table["text"].tolist()
    assert next(TextFile(tmp_path / "table", kind).blocks(20_000))[0][0] == "text 20000"


def test_a_text_longer_than_a_block_is_read_whole(tmp_path, blocks_of):
    (tmp_path / "long.txt").write_text("x" * 100_000 + "\nend")
    blocks_of(64)
    assert list(map(len, texts_of(tmp_path / "long.txt"))) == [100_000, 3]


def test_what_is_wrong_far_into_a_file_says_where(tmp_path, blocks_of):
    blocks_of(1000)
    path = tmp_path / "far.txt"
    path.write_bytes(b"a line\n" * 1000 + b"\xff\n")
    with pytest.raises(ValueError, match=r"far.txt is no UTF-8 text"):
        texts_of(path)
    path.write_text("a line\n" * 1000 + "b" + " " * 100_000 + "c")
    with pytest.raises(ValueError, match=r"far.txt, line 1001: 100,000 blanks"):
        texts_of(path)


# ---------------------------------------------------------------- the store


STORIES = "".join(f"Story {number} is {'very ' * (number % 7)}short.\n{ENDOFTEXT}\n" for number in range(900))


class Counting:
    """A tokenizer that counts what it encodes, and fails at text number `fails`."""

    def __init__(self, tokenizer, fails=math.inf):
        self.n_vocab, self.tokenizer, self.texts, self.fails = tokenizer.n_vocab, tokenizer, 0, fails

    def encode(self, text, **options):
        self.texts += 1
        if self.texts > self.fails:
            raise KeyboardInterrupt
        return self.tokenizer.encode(text, **options)


@pytest.fixture
def kept(tmp_path, monkeypatch, blocks_of):
    """A file whose tokens are kept in a cache; 2,000 bytes a block."""
    blocks_of(2000)
    monkeypatch.setattr(store, "SMALL", 0)
    monkeypatch.setenv("WORKBOOK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "stories.txt").write_text(STORIES)
    return tmp_path / "stories.txt"


def as_lists(found):
    return [tokens.tolist() for tokens in found.sequences(100)]


def test_a_kept_text_is_encoded_once_and_equals_one_in_memory(kept, tokenizer, monkeypatch):
    counting = Counting(tokenizer)
    first, second = encode_source(kept, counting), encode_source(kept, counting)
    assert counting.texts == 900 and isinstance(second.tokens, np.memmap) and second.tokens.dtype == np.uint16
    assert as_lists(first) == as_lists(second) == [tokenizer.encode(text) for text in texts_of(kept)]
    assert second.whole_bytes == sum(len(text.encode()) for text in texts_of(kept))
    monkeypatch.setattr(store, "SMALL", 10**9)
    in_memory = encode_source(kept, tokenizer)
    assert as_lists(in_memory) == as_lists(first) and (in_memory.texts == second.texts).all()
    kept.write_text(STORIES.replace("Story 1 ", "Tale 1 "))
    monkeypatch.setattr(store, "SMALL", 0)
    encode_source(kept, counting)
    assert counting.texts == 1800  # another text


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("limit", [1, 40, 500, None])
def test_the_stories_of_a_split_are_those_of_load_stories(kept, tokenizer, split, limit):
    counting = Counting(tokenizer)
    found = encode_source(kept, counting, split=split, limit=limit)
    assert as_lists(found) == [tokenizer.encode(story) for story in load_stories(kept, split, limit)]
    assert (counting.texts < 100 + 12 * limit) if limit and limit < 50 else True  # no more of the file than is needed
    assert abs(found.whole_bytes / sum(len(text.encode()) for text in texts_of(kept)) - 1) < 0.2


def test_a_folder_has_a_file_for_each_split(kept, tokenizer):
    folder = kept.parent / "both"
    folder.mkdir()
    (folder / "train.txt").write_text(STORIES)
    (folder / "valid.txt").write_text(STORIES[:2000] + f"Another.{ENDOFTEXT}Another.")
    for split in ("train", "validation"):
        found, stories = encode_source(folder, tokenizer, split=split), load_stories(folder, split, None)
        assert as_lists(found) == [tokens for tokens in map(tokenizer.encode, stories) if len(tokens) > 1]
    assert len(set(load_stories(folder, "train", None)) & set(load_stories(folder, "validation", None))) == 0


@pytest.mark.parametrize("fails", [1, 7, 150, 899])
def test_a_text_whose_encoding_was_stopped_goes_on(kept, tokenizer, fails):
    plain = as_lists(store.encode_all(texts_of(kept), tokenizer))
    stopped, counting = Counting(tokenizer, fails), Counting(tokenizer)
    with pytest.raises(KeyboardInterrupt):
        encode_source(kept, stopped)
    (folder,) = (kept.parent / "cache").iterdir()
    with (folder / "tokens.bin").open("ab") as file:
        file.write(b"half a block")
    assert as_lists(encode_source(kept, counting)) == plain
    assert 900 - fails <= counting.texts <= 900 - fails + 60  # the block in work is lost, no more


@pytest.mark.parametrize("damage", ["state.json", "tokens.bin", "texts.bin"])
@pytest.mark.parametrize("how", ["absent", "short", "odd"])
def test_a_cache_that_cannot_be_read_is_not_needed(kept, tokenizer, damage, how):
    plain = as_lists(encode_source(kept, tokenizer))
    (folder,) = (kept.parent / "cache").iterdir()
    path = folder / damage
    if how == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:10] if how == "short" else b'{"texts": "many"}')
    if (damage, how) == ("state.json", "absent"):  # nothing was begun
        assert as_lists(encode_source(kept, tokenizer)) == plain
    else:
        with pytest.warns(UserWarning, match=f"the cache {folder} cannot be read .*encoded again") as notes:
            assert as_lists(encode_source(kept, tokenizer)) == plain
        assert len(notes) == 1
    assert as_lists(encode_source(kept, tokenizer)) == plain


def test_a_cache_that_cannot_be_written_is_not_needed(kept, tokenizer, monkeypatch):
    plain = as_lists(encode_source(kept, tokenizer))
    (kept.parent / "file").touch()
    monkeypatch.setenv("WORKBOOK_CACHE", str(kept.parent / "file"))
    with pytest.warns(UserWarning, match="cannot be written .*no more is kept"):
        assert as_lists(encode_source(kept, tokenizer)) == plain


ENCODE = """
import sys
from workbook import files, store, text
files.BLOCK, store.SMALL = 2000, 0
found = text.encode_source(sys.argv[1], text.load_tokenizer())
print(len(found), found.tokens.astype(int).sum())
"""


def encode_in_a_process(path):
    return subprocess.Popen([sys.executable, "-c", ENCODE, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_that_are_killed_or_work_at_once_leave_a_whole_text(kept, tokenizer):
    kept.write_text(STORIES * 6)
    (kept.parent / "cache").mkdir()
    rng = random.Random(0)
    for _ in range(4):
        process = encode_in_a_process(kept)
        while process.poll() is None and not list((kept.parent / "cache").glob("*/state.json")):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    found = [process.communicate()[0] for process in [encode_in_a_process(kept) for _ in range(3)]]
    plain = store.encode_all(texts_of(kept), tokenizer)
    assert found == [f"{len(plain)} {plain.tokens.astype(int).sum()}\n"] * 3
    (folder,) = (kept.parent / "cache").iterdir()
    assert json.loads((folder / "state.json").read_text())["complete"]
    assert (folder / "tokens.bin").stat().st_size == 2 * len(plain.tokens)


class Rows(list):
    """What the hub's library gives for a split."""

    _fingerprint = "abc"
    data = SimpleNamespace(nbytes=10**9)

    def __getitem__(self, which):
        return {"text": list(self)[which]}


def test_all_stories_of_the_hub_are_kept_too(kept, tokenizer, monkeypatch):
    train = [" One day. ", "Both.", *(f"Day {n}." for n in range(20_000))]
    splits = {"train": Rows(train), "validation": Rows(["Both."])}
    for split, rows in splits.items():
        rows._fingerprint = split
    calls = []
    fetch = SimpleNamespace(load_dataset=lambda name, split: (calls.append(name), splits[split])[1])
    monkeypatch.setitem(sys.modules, "datasets", fetch)
    counting = Counting(tokenizer)
    for _ in range(2):
        found = encode_source("hub", counting, split="train")
        assert len(found) == 20_001 and as_lists(found)[0] == tokenizer.encode("One day.")
    assert counting.texts == 20_003 and set(calls) == {"roneneldan/TinyStories"}


# ---------------------------------------------------------------- views


lists = st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=12)


@few
@given(lists, st.integers(1, 20))
def test_a_view_is_what_its_sequences_are(values, size):
    tensors = [torch.tensor(value, dtype=torch.int64) for value in values]
    view, usual = Sequences.of(tensors), sequences.BLOCK
    try:
        sequences.BLOCK = size
        assert [tokens.tolist() for tokens in view] == values and view.flat().tolist() == sum(values, [])
        assert [tokens.tolist() for block in view.blocks() for tokens in block] == values
        assert all(len(block) == 1 or block.lengths[:-1].sum() < size + 9 for block in view.blocks())
        assert [tokens.tolist() for tokens in view[::-2]] == values[::-2]
        assert view[::-1].flat().tolist() == sum(values[::-1], [])
        assert [tokens.tolist() for tokens in view[1:] + view[:1]] == values[1:] + values[:1]
        assert [tokens.tolist() for tokens in view + Sequences.of(tensors)] == values * 2
        targets = Counter(token for value in values for token in value[1:])
        assert view.targets().counts(8).tolist() == [targets[token] for token in range(8)]
        if view.flat().numel():
            compact, ids = text.compact_vocabulary(view)
            assert [ids[tokens].tolist() for tokens in compact] == values
            again = text.renumber(compact, torch.arange(0, len(ids), 2))
            assert again.flat().max() <= len(ids)
    finally:
        sequences.BLOCK = usual


# ---------------------------------------------------------------- contexts and counts, in blocks


@settings(deadline=None, max_examples=60)
@given(lists, st.integers(0, 9), st.sampled_from([10, 300, 50_257, 10**6]), st.integers(1, 30))
def test_windows_are_counted_as_one_by_one(values, width, vocab_size, size):
    tensors = [torch.tensor(value, dtype=torch.int64) for value in values if len(value) > 1]
    if not tensors:
        return
    expected = Counter(map(tuple, target_windows(tensors, width, vocab_size).tolist()))
    usual = sequences.BLOCK
    try:
        sequences.BLOCK = size
        found = WindowCounts(tensors, width, vocab_size)
        assert list(map(tuple, found.windows().tolist())) == sorted(expected)
        assert found.count.tolist() == [expected[window] for window in sorted(expected)]
        if width:
            contexts = CorpusContexts(tensors, width, vocab_size)
            assert list(map(tuple, contexts.contexts.tolist())) == sorted({window[:-1] for window in expected})
            assert contexts.total.sum() == sum(expected.values()) and contexts.edges[-1] == len(expected)
    finally:
        sequences.BLOCK = usual


@pytest.mark.parametrize("width", [2, 9])
def test_where_memory_ends_whole_blocks_are_counted(width, blocks_of):
    blocks_of(50)
    tensors = [torch.from_numpy(np.random.default_rng(seed).integers(0, 40, 30)) for seed in range(20)]
    blocks = list(Sequences.of(tensors).blocks())
    first = blocks[torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))[0]]
    found = WindowCounts(tensors, width, 50_257, memory=1)
    assert found.used == first.lengths.sum() / 600
    expected = Counter(map(tuple, target_windows(first, width, 50_257).tolist()))
    assert dict(zip(map(tuple, found.windows().tolist()), found.count.tolist(), strict=True)) == expected


def test_kneser_ney_does_not_depend_on_the_blocks(blocks_of):
    rng = np.random.default_rng(0)
    tensors = [torch.from_numpy(rng.integers(0, 30, 50) ** 2 // 30) for _ in range(60)]
    whole = KneserNey(tensors, 30, 6)
    blocks_of(100)
    split = KneserNey(tensors, 30, 6)
    for one, other in zip(whole.levels, split.levels, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


MEMORY = """
import sys, warnings
import numpy as np
from workbook import sequences
from workbook.batches import CorpusContexts
from workbook.counts import KneserNey
from workbook.machine import peak_memory
sequences.BLOCK, k, made = 2**17, int(sys.argv[1]), []
tokens = np.random.default_rng(0).integers(0, 10_000, 4_000_000).astype(np.uint16)
view = sequences.Sequences(tokens, np.arange(0, 4_000_000, 100), np.full(40_000, 100))
make = {"contexts": lambda: CorpusContexts(view, k, 10_000, memory=0.2e9),
        "counts": lambda: KneserNey(view, 10_000, k + 1, memory=0.2e9)}[sys.argv[2]]
with warnings.catch_warnings(record=True) as notes:
    warnings.simplefilter("always")
    peak = peak_memory(lambda: made.append(make()))
print(peak, int(made[0].total.sum() if sys.argv[2] == "contexts" else made[0].levels[-1]["total"].sum()))
print(*(note.message for note in notes))
"""


@pytest.mark.parametrize("k, what", [(3, "contexts"), (12, "contexts"), (3, "counts"), (6, "counts")])
def test_counts_keep_to_their_memory_and_say_so(k, what):
    command = [sys.executable, "-c", MEMORY, str(k), what]
    numbers, note = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    peak, targets = map(float, numbers.split())
    assert 0.08e9 < peak < 0.21e9 or math.isnan(peak)  # of 0.4 GB or more that all of them take
    share = re.match(f"windows of {k + 1} tokens are counted in a random ([0-9.]+)% of the text: more do not fit", note)
    assert abs(float(share[1]) / 100 - targets / (40_000 * 99)) < 0.001 and targets < 2_500_000


def test_contexts_that_are_kept_are_counted_once_and_not_needed(tmp_path, monkeypatch):
    tensors = [torch.from_numpy(np.random.default_rng(seed).integers(0, 40, 30)) for seed in range(20)]
    plain, made = CorpusContexts(tensors, 9, 10**6), []
    monkeypatch.setattr(batches, "count_contexts", lambda *given: made.append(1) or count_contexts(*given))

    def same(folder):
        kept = CorpusContexts(tensors, 9, 10**6, kept=folder)
        return all(torch.equal(plain.arrays[name], kept.arrays[name]) for name in plain.arrays) and torch.equal(
            plain.contexts, kept.contexts
        )

    assert same(tmp_path / "kept") and same(tmp_path / "kept") and len(made) == 1
    path = tmp_path / "kept" / "keys.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="cannot be used .*nothing is kept"):
        assert same(tmp_path / "kept")
    assert same(tmp_path / "kept") and same(tmp_path / "kept") and len(made) == 3  # written anew, once
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be used .*nothing is kept"):
        assert same(tmp_path / "file" / "kept")
    (tmp_path / "kept" / "total.npy").unlink()
    assert same(tmp_path / "kept")  # a missing one is made again


def test_contexts_of_a_part_say_so_each_time(tmp_path, blocks_of):
    blocks_of(50)
    tensors = [torch.from_numpy(np.random.default_rng(seed).integers(0, 40, 30)) for seed in range(20)]
    for _ in range(2):
        with pytest.warns(UserWarning, match="windows of 3 tokens are counted in a random [0-9.]+% of the text"):
            CorpusContexts(tensors, 2, 50, memory=1, kept=tmp_path / "kept")


def test_draws_are_those_of_multinomial_and_go_beyond_its_limit():
    weights = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) ** 4
    weights[::3] = 0
    expected = torch.multinomial(weights, 9000, True, generator=torch.Generator().manual_seed(2))
    assert list(Draws(weights, 9000, torch.Generator().manual_seed(2))) == expected.tolist()
    for weights in ([0.0, 0.0], [1.0, -1.0, 3.0], [math.nan, 1.0], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="weights of a draw are below 0, not finite, or all 0"):
            Draws(weights, 3, torch.Generator())
    many = torch.ones(2**24 + 5)
    drawn = list(Draws(many, 1000, torch.Generator().manual_seed(0)))
    assert min(drawn) >= 0 and max(drawn) < len(many) and max(drawn) > 2**23


def test_similar_lengths_are_the_batches_that_they_always_were():
    tensors = [torch.arange(2 + (7 * number) % 31) for number in range(1300)]
    similar = make_batches(tensors, 8, seed=3, similar_lengths=True)
    digest = hashlib.sha256(b"".join(batch.numpy().tobytes() for batch in similar)).hexdigest()
    assert digest.startswith("edf4307d235c")


# ---------------------------------------------------------------- texts of any size


def test_halves_are_joined_without_repeating_a_pair():
    stories = [f"Number {n} was here. Then {n} left. It was late. The end of {n}." for n in range(30)]
    made = list(join_halves(stories, 900))
    assert len(set(made)) == 900 and set(made[:30]) == set(stories)
    assert made == list(join_halves(stories, 900)) != list(join_halves(stories, 900, seed=1))
    assert all(story.startswith("Number") and story.endswith(".") and "left. It was" in story for story in made)
    assert list(join_halves(stories, 901)) == made  # there are no more
    assert set(join_halves(["Ein Satz im Wald", "x", "ab"], 9)) == {
        first + second for first in ("Ein ", "x", "a") for second in ("Satz im Wald", "", "b")
    }


def test_a_text_of_any_size_is_written_with_its_validation(tmp_path):
    assert write_stories(tmp_path / "made", 12_000, "builtin") == 12_000
    train, held_out = (load_stories(tmp_path / "made", split, None) for split in ("train", "validation"))
    assert 11_500 < len(train) <= 12_000 and len(held_out) == 2000
    assert held_out == load_stories("builtin", "validation", 2000)
    with pytest.raises(ValueError, match="train.txt exists; name another folder"):
        write_stories(tmp_path / "made", 12, "builtin")
    with pytest.raises(ValueError, match="0 stories cannot be written"):
        write_stories(tmp_path / "other", 0)
    assert set(load_stories("builtin", limit=5000)) <= {*train}


def test_the_command_that_writes_stories_says_how_many(tmp_path):
    (tmp_path / "few.txt").write_text("One day. It rained.\n\nOnce more. It was dry.\n\nAt last. It snowed.\n")
    command = [
        sys.executable,
        "-m",
        "workbook",
        "stories",
        str(tmp_path / "made"),
        "--stories",
        str(tmp_path / "few.txt"),
    ]
    done = subprocess.run([*command, "--max_stories", "50"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "4 stories in" in done.stdout and "make 4 stories, and no more" in done.stderr
    assert len(load_stories(tmp_path / "made", "train", None)) == 4
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and "train.txt exists; name another folder" in again.stderr
