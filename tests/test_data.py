"""Tokenizer, 3seqs.txt, text files of all kinds, splits and stories."""

import dataclasses
import json
import math
import os
import re
import warnings

import pandas as pd
import pytest
import torch

import helpers
from workbook.batches import CorpusContexts, make_batches, pad_batch, split_sequences
from workbook.config import TextConfig, make_parser, read_config
from workbook.counts import KneserNey, loss_floor
from workbook.experiment import read_text
from workbook.files import TABLES, find_data
from workbook.text import (
    CompactTokenizer,
    bits_per_byte,
    cache_folder,
    common_opening,
    compact_vocabulary,
    encode_texts,
    load_stories,
    make_tokenizer,
    opening,
    read_sequences,
    read_texts,
    renumber,
    separator_of,
    write_3seqs,
)


def test_tokenizer_is_gpt2(tokenizer):
    assert tokenizer.n_vocab == 50_257 == helpers.BLANK
    assert tokenizer.encode("Hello world!") == [15496, 995, 0]
    assert tokenizer.encode("<|endoftext|>", allowed_special="all") == [50_256]


def test_the_full_3seqs_has_the_size_of_the_course_file(tmp_path):
    assert write_3seqs(tmp_path / "full.txt").stat().st_size == 8_304_725


def test_the_shipped_3seqs_follows_its_rule(tmp_path):
    shipped = find_data("3seqs.txt").read_bytes()
    assert write_3seqs(tmp_path / "again.txt", copies=32).read_bytes() == shipped
    lines = shipped.decode().splitlines()
    assert len(lines) == 96 and {lines.count(line) for line in set(lines)} == {32}


def read(tmp_path, content: bytes, tokenizer, block_size=32, separator=None):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    return [sequence.tolist() for sequence in read_sequences(path, tokenizer, block_size, separator)]


def test_line_ends_marks_and_empty_lines(tmp_path, tokenizer):
    plain = read(tmp_path, b"a b c\nd e\n", tokenizer)
    assert plain == [tokenizer.encode("a b c"), tokenizer.encode("d e")]
    for content in (
        b"a b c\r\nd e\r\n",
        b"\xef\xbb\xbfa b c\n\n \nd e",
        b"a b c\n!\nd e\n",
        b"\n\na b c\nd e\n\n",
    ):  # "!" is one token
        assert read(tmp_path, content, tokenizer) == plain


@pytest.mark.parametrize("mark", ["\r", "\x0b", "\x0c", "\x85", "\u2028", "\ufeff", "\x1a"])
def test_only_line_ends_end_a_line(tmp_path, tokenizer, mark):
    odd = f"a b{mark}c d"
    assert read(tmp_path, f"\ufeff{odd}\r\ne f".encode(), tokenizer) == [*map(tokenizer.encode, (odd, "e f"))]


@pytest.mark.parametrize("name", ["tale[1].txt", "tale*.txt", "tale?.txt", "#1 {x} $HOME %s.txt", "builtin.txt"])
def test_the_file_is_the_one_that_was_named_as_it_is_now(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for other in ("tale1.txt", "tale.txt", "tale2.txt"):
        (tmp_path / other).write_text("\n".join(f"other {number}" for number in range(9)))
    for word in ("first", "again"):  # rewritten with the old time
        (tmp_path / name).write_text("\n".join(f"{word} {number}" for number in range(9)))
        os.utime(tmp_path / name, (1e9, 1e9))
        found = load_stories(name) + load_stories(name, "validation")
        assert sorted(found) == [f"{word} {number}" for number in range(9)]
        assert read_texts(name)[0] == [f"{word} {number}" for number in range(9)]


def test_endoftext_is_one_real_token(tmp_path, tokenizer):
    assert read(tmp_path, b"a<|endoftext|>b\n", tokenizer, separator="lines") == [[64, 50_256, 65]]


FILES = {
    "lines": "Ein Satz.\nNoch ein Satz.\n",
    "paragraphs": "Ein Satz,\numbrochen.\n\nNoch ein\nSatz.\n \nUnd einer.\n",
    "<|endoftext|>": "A story.\n\nIts end.\n<|endoftext|>\nAnother one.<|endoftext|>\n",
}


@pytest.mark.parametrize("separator", FILES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_separates_texts_is_guessed_and_can_be_set(tmp_path, tokenizer, separator, end):
    path = tmp_path / "text.txt"
    path.write_text(FILES[separator], encoding="utf-8", newline=end)
    expected = {
        "lines": ["Ein Satz.", "Noch ein Satz."],
        "paragraphs": ["Ein Satz,\numbrochen.", "Noch ein\nSatz.", "Und einer."],
        "<|endoftext|>": ["A story.\n\nIts end.", "Another one."],
    }
    assert read_texts(path) == (expected[separator], separator)
    assert separator_of(path) == separator and separator_of("small") is None
    for other in FILES:
        texts, used = read_texts(path, other)
        assert used == separator_of(path, other) == other
        assert (texts == expected[separator]) == (other == separator)
    sequences = read_sequences(path, tokenizer, 32)
    assert [tokenizer.decode(sequence.tolist()) for sequence in sequences] == expected[separator]
    with pytest.raises(ValueError, match="separator is 'tabs'; expected one of lines, paragraphs"):
        read_texts(path, "tabs")


def test_stories_of_a_file_are_those_between_its_separators(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Fall {n}.\nSein Ende." for n in range(40)), encoding="utf-8")
    train, held_out = (load_stories(path, split) for split in ("train", "validation"))
    assert len(train) + len(held_out) == 40 and all(text.endswith("Ende.") for text in train + held_out)
    lines = load_stories(path, separator="lines")
    assert "Fall 7." in lines + load_stories(path, "validation", separator="lines")


def test_the_opening_of_a_text():
    assert opening("Es war einmal ein Kind.") == "Es war einmal" and opening("0 1 2 3", words=2) == "0 1"
    assert opening("Wort") == "Wort" and opening("\nEs  war") == "\nEs  war"


def test_the_most_common_opening_of_texts():
    texts = ["Zoe had a hat.", "Once upon a time.", "Once upon a tree.", "Zoe had a cat."]
    assert common_opening(texts, words=3) == "Zoe had a" and common_opening(texts, words=2) == "Zoe had"
    assert common_opening(texts[1:], words=3) == "Once upon a" and common_opening(texts[:2]) == "Zoe had a hat."


def test_blocks_are_cut_at_their_size(tmp_path, tokenizer):
    assert read(tmp_path, b"0 1 2 3 4 5\n", tokenizer, block_size=4) == [tokenizer.encode("0 1 2 3")]
    with pytest.raises(ValueError, match="block_size is 1"):
        read(tmp_path, b"0 1 2\n", tokenizer, block_size=1)


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"!\n?\n", "a b\nc d".encode("utf-16"), b"a\0b c", b"\x89PNG\x00\x01", b"caf\xe9 au lait"]
)
def test_unusable_files_are_named(tmp_path, tokenizer, content):
    with pytest.raises(ValueError, match=r"text\.txt"):
        read(tmp_path, content, tokenizer)


def test_a_missing_file_is_named(tokenizer):
    with pytest.raises(FileNotFoundError, match="absent.txt"):
        read_sequences("absent.txt", tokenizer, 32)


def sequences_of(count, copies=1):
    return [torch.tensor([i, i + 1, i + 2]) for i in range(count)] * copies


def test_a_split_is_the_same_each_time_and_shares_nothing():
    sequences = sequences_of(50, copies=3)
    splits = [split_sequences(sequences, 0.2, seed=1) for _ in range(10)]
    as_lists = [[[s.tolist() for s in side] for side in split] for split in splits]
    assert all(split == as_lists[0] for split in as_lists)
    train, validation = ({tuple(s) for s in side} for side in as_lists[0])
    assert not train & validation and len(train | validation) == 50 and len(validation) == 10
    assert len(as_lists[0][0]) + len(as_lists[0][1]) == 150
    other = split_sequences(sequences, 0.2, seed=2)
    assert [s.tolist() for s in other[1]] != as_lists[0][1]


@pytest.mark.parametrize("validation", [0.1, 0.5, 0.99])
def test_neither_side_of_a_split_is_empty(validation):
    train, held_out = split_sequences(sequences_of(25), validation)
    assert train and held_out


def test_a_split_of_3seqs_warns(tokenizer):
    with pytest.warns(UserWarning, match="only 3 of 96"):
        split_sequences(read_sequences("3seqs.txt", tokenizer, 32))


def test_impossible_splits_say_so():
    with pytest.raises(ValueError, match="cannot be split"):
        split_sequences(sequences_of(1, copies=9))
    with pytest.raises(ValueError, match="validation is 1.5"):
        split_sequences(sequences_of(9), 1.5)


def test_batches_are_padded_with_blank_and_repeat_by_seed():
    sequences = [torch.arange(length) for length in range(2, 12)]
    first, again, other = (list(make_batches(sequences, 4, blank=99, seed=s)) for s in (0, 0, 1))
    assert [tokens.shape[1] for tokens in first] == [4, 4, 2]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other, strict=True))
    lengths = sorted(int((column != 99).sum()) for tokens in first for column in tokens.T)
    assert lengths == list(range(2, 12))
    batches = make_batches(sequences, 10, blank=99)
    assert not torch.equal(next(iter(batches)), next(iter(batches)))  # a new epoch, a new order


def test_weighted_batches_follow_their_weights():
    sequences = sequences_of(400)
    weights = [0.0] * 200 + [1.0] * 200
    drawn = torch.cat([tokens[0] for tokens in make_batches(sequences, 50, weights=weights)])
    assert len(drawn) == 400 and drawn.min() >= 200


@pytest.mark.parametrize("weights", [None, [1.0] * 500])
def test_batches_of_similar_lengths_hold_little_padding(weights):
    lengths = torch.randint(2, 60, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    sequences = [torch.full((length,), number) for number, length in enumerate(lengths)]

    def epoch(seed, similar):
        options = {"blank": 999, "seed": seed, "similar_lengths": similar, "weights": weights}
        return list(make_batches(sequences, 8, **options))

    def padding(batches):
        return sum((tokens == 999).sum().item() for tokens in batches) / sum(tokens.numel() for tokens in batches)

    first, again, other = epoch(0, True), epoch(0, True), epoch(1, True)
    assert len(first) == 63 and padding(first) < 0.15 < 0.3 < padding(epoch(0, False))
    if weights is None:
        assert sorted(torch.cat([tokens[0] for tokens in first]).tolist()) == list(range(500))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(first, other, strict=True) if a[0].shape == b[0].shape)
    sizes = [tokens.shape[0] for tokens in first]
    assert sizes[:50] != sorted(sizes[:50])  # short batches do not come first


@pytest.mark.parametrize("arguments", [([], 4), (sequences_of(3), 0)])
def test_impossible_batches_say_so(arguments):
    with pytest.raises(ValueError, match="expected"):
        make_batches(*arguments)


@pytest.mark.parametrize("source", ["builtin", "small"])
def test_builtin_stories(source):
    stories = load_stories(source, limit=300)
    assert len(set(stories)) == 300 and stories == load_stories(source, limit=300)
    assert stories != load_stories(source, limit=300, seed=1)
    assert not set(stories) & set(load_stories(source, split="validation", limit=300))
    assert not any(mark in story for story in stories for mark in "{}#")


def test_the_rich_grammar_is_rich(tokenizer):
    grammar = json.loads(find_data("story_grammar.json").read_text(encoding="utf-8"))
    assert len(grammar["plots"]) >= 40
    stories = load_stories(limit=4000)
    tokens = [tokenizer.encode(story) for story in stories]
    assert len({token for story in tokens for token in story}) > 3000
    assert 150 < sum(map(len, tokens)) / len(tokens) < 300
    assert sum('"' in story for story in stories) > 0.8 * len(stories)  # they talk
    names = [option["name"] for option in grammar["cast"]["hero"]]
    late = [any(name in story[2 * len(story) // 3 :] for name in names if name in story[:300]) for story in stories]
    assert sum(late) > 0.95 * len(stories)  # the hero of the beginning is there in the end


def test_articles_fit_what_follows_them():
    text = " ".join(load_stories(limit=1500)).lower()
    assert not re.findall(r"\ba [aeiou](?!ne\b|nce\b|ni|se|ku)\w+", text)[:5]
    assert not re.findall(r"\ban [bcdfgjklmnpqrstvwxyz]\w+", text)[:5]
    assert not re.findall(r"\b(\w+) \1\b", re.sub(r"[^a-z ]", ".", text))[:5]


def test_stories_of_a_local_file(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("<|endoftext|>\n".join(f"Story {i}.\nIts end.\n" for i in range(60)), encoding="utf-8-sig")
    train, validation = (load_stories(path, split) for split in ("train", "validation"))
    assert len(train) + len(validation) == 60 and validation and not set(train) & set(validation)
    assert all(story.startswith("Story") and story.endswith("Its end.") for story in train + validation)
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match=r"stories\.txt is no UTF-8 text"):
        load_stories(path)


def test_stories_that_cannot_be_had_say_what_to_do(tmp_path, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConnectionError, match="built-in stories"):
        load_stories("hub")
    hub = {"train": [" One day. ", "One day.", "Both."], "validation": ["Both.", "Kept."]}
    fake = lambda *_, split, **__: [{"text": text} for text in hub[split]]  # noqa: E731
    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert load_stories("hub") == ["One day."]
    assert load_stories("hub", "validation") == ["Both.", "Kept."]
    with pytest.raises(ValueError, match="never end; give a limit"):
        load_stories(limit=None)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_stories("absent.txt")
    with pytest.raises(ValueError, match="split is 'test'"):
        load_stories(split="test")


def test_a_folder_gives_the_split_and_no_story_is_on_both_sides(tmp_path):
    (tmp_path / "train.txt").write_text("<|endoftext|>".join(["A day.", "Both days.", "A day.", "B day."]))
    with pytest.raises(FileNotFoundError, match=r"holds no valid\.txt; expected train\.txt and valid\.txt"):
        load_stories(tmp_path, "validation")
    (tmp_path / "valid.txt").write_text("Both days.\n<|endoftext|>\nC day.")
    assert load_stories(tmp_path) == ["A day.", "B day."]
    assert load_stories(tmp_path, limit=None) == ["A day.", "B day."]
    assert load_stories(tmp_path, "validation") == ["Both days.", "C day."]


def test_parallel_encoding_equals_one_by_one(tokenizer):
    stories = load_stories(limit=1500)
    for found, story in zip(encode_texts(stories, tokenizer, 10**6), stories, strict=True):
        assert found.tolist() == tokenizer.encode(story)


def test_the_cache_lies_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("WORKBOOK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / "pico-llm"


def test_tokens_outside_a_compact_vocabulary_become_blank(tokenizer):
    _, ids = compact_vocabulary([torch.tensor([7, 9, 30])])
    assert renumber([torch.tensor([30, 8, 7, 50000, 9])], ids)[0].tolist() == [2, 3, 0, 3, 1]


def test_bits_per_byte_counts_the_bytes_of_the_targets(tokenizer):
    sequences = [torch.tensor(tokenizer.encode("The cat sat. 🦜"))]
    first = len(tokenizer.decode_single_token_bytes(int(sequences[0][0])))
    size, targets = len("The cat sat. 🦜".encode()) - first, len(sequences[0]) - 1
    assert bits_per_byte(math.log(2), sequences, tokenizer) == pytest.approx(targets / size)
    compact, ids = compact_vocabulary(sequences)
    words = CompactTokenizer(tokenizer, ids)
    assert bits_per_byte(math.log(2), compact, words) == pytest.approx(targets / size)
    compact = [compact[0].index_fill(0, torch.tensor([2]), len(ids))]  # BLANK: neither a target nor its bytes
    lost = len(tokenizer.decode_single_token_bytes(int(sequences[0][2])))
    assert bits_per_byte(math.log(2), compact, words) == pytest.approx((targets - 1) / (size - lost))


# ---------------------------------------------------------------- caches, odd texts, empty lists


@pytest.mark.parametrize("count", [2, 3, 12, 30])
def test_a_split_of_few_stories_has_both_sides(tmp_path, count):
    for begin in range(0, 40, 5):
        stories = [f"Story {n} is here." for n in range(begin, begin + count)]
        (tmp_path / "few.txt").write_text("\n".join([*stories, stories[0]]))
        sides = [load_stories(tmp_path / "few.txt", split, separator="lines") for split in ("train", "validation")]
        assert all(sides) and sorted(sides[0] + sides[1]) == sorted(stories)


def test_a_run_of_blanks_names_its_file_and_line(tmp_path):
    (tmp_path / "wide.txt").write_text("one\ntwo" + " " * 100_000 + "three\n")
    with pytest.raises(ValueError, match=r"wide\.txt, line 2: 100,000 blanks in a row"):
        read_texts(tmp_path / "wide.txt")


@pytest.mark.parametrize("limit", [0, -3, 10**9])
def test_a_limit_is_one_that_can_be_reached(limit):
    with pytest.raises(ValueError, match=f"limit.*{limit}"):
        load_stories("small", limit=limit)
    assert len(set(load_stories("small", limit=3000))) > 100


NOTHING = {
    "common_opening": lambda: common_opening([]),
    "compact_vocabulary": lambda: compact_vocabulary([]),
    "loss_floor": lambda: loss_floor([]),
    "loss_floor of one token": lambda: loss_floor([torch.tensor([1])]),
    "pad_batch": lambda: pad_batch([]),
    "loss_by_position": lambda: helpers.loss_by_position([], [1]),
    "make_batches": lambda: make_batches([], 4),
    "CorpusContexts": lambda: CorpusContexts([], 3, 9),
}


@pytest.mark.parametrize("call", NOTHING.values(), ids=NOTHING)
def test_of_nothing_nothing_can_be_made(call):
    with pytest.raises(ValueError, match="one or more"):
        call()


def test_what_does_not_fit_says_so(tokenizer):
    with pytest.raises(TypeError, match="texts is one string; expected a list of texts"):
        encode_texts("one string", tokenizer, 5)
    sequences = [torch.tensor([1, 2, 30]), torch.tensor([3, 4])]
    with pytest.raises(ValueError, match="3 weights for 2 sequences"):
        make_batches(sequences, 2, weights=[1, 2, 3])
    for make in (lambda: CorpusContexts(sequences, 2, 9), lambda: KneserNey(sequences, 9, 2)):
        with pytest.raises(ValueError, match="token ids run from 1 to 30; expected 0 to 8, or 9 for BLANK"):
            make()


# ---------------------------------------------------------------- long texts, tables, other vocabularies


def test_windows_hold_each_token_and_make_each_a_target_once(tokenizer):
    texts = ["one two three four five six seven eight nine", "one two", "x"]
    plain = encode_texts(texts, tokenizer, 4)
    assert [len(s) for s in plain] == [4, 2]
    found = encode_texts(texts, tokenizer, 4, windows=True)
    assert [len(s) for s in found] == [4, 4, 3, 2]
    whole = tokenizer.encode(texts[0])
    assert found[0].tolist() + found[1][1:].tolist() + found[2][1:].tolist() == whole


def test_the_share_of_a_text_that_is_used_is_said(tmp_path):
    (tmp_path / "cats.txt").write_text("cat cat cat cat\nsun sun\n" * 2)
    (tmp_path / "tales.txt").write_text("\n".join(f"Tale {number:03}" for number in range(100)))
    for options, share in {
        "--block_size 2": 28 / 44,  # "cat cat" and "sun sun", twice
        "--block_size 4": 1,
        "--block_size 2 --windows": 1,
        "--tinystories_weight 1 --max_stories 10 --stories tales.txt --separator lines": 0.1,
    }.items():
        options = options.replace("tales", str(tmp_path / "tales"))
        args = make_parser(TextConfig).parse_args(
            ["--input_files", str(tmp_path / "cats.txt"), "--tinystories_weight", "0", *options.split()]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = read_text(read_config(TextConfig, args), 3)
        assert f", {share:.1%} of the text" in data.notes[0]
        assert any(note.startswith(f"note: only {share:.1%}") for note in data.notes) == (share < 0.5)


def test_samples_begin_with_whole_characters(tmp_path):
    (tmp_path / "text.txt").write_text("\u732b" * 50, encoding="utf-8")  # three bytes each, no blanks
    for vocabulary in ("gpt2", "bytes"):
        config = TextConfig(
            input_files=(str(tmp_path / "text.txt"),), tinystories_weight=0, block_size=5, vocabulary=vocabulary
        )
        data = read_text(dataclasses.replace(config, compact=True), 3)
        assert data.opening == "\u732b" * len(data.opening) and data.tokenizer.encode(data.opening)


ROWS = [
    {"id": 1, "text": 'One, "two"\nthree'},
    {"id": 2, "text": "NA"},
    {"id": 3, "text": " "},
    {"id": 4, "text": None},
]


@pytest.mark.parametrize("kind", TABLES)
def test_the_column_text_of_a_table_is_read_as_it_is(tmp_path, kind):
    path, table = tmp_path / f"rows.{kind}", pd.DataFrame(ROWS)
    write = {"csv": table.to_csv, "jsonl": lambda path: table.to_json(path, orient="records", lines=True)}
    write.get(kind, table.to_parquet)(path)
    assert read_texts(path, kind) == ([ROWS[0]["text"], "NA"], kind)
    write = {"csv": (tmp_path / "other").write_text, "jsonl": (tmp_path / "other").write_text}
    write.get(kind, lambda _: table.drop(columns="text").to_parquet(tmp_path / "other"))(
        "id,words\n1,a\n" if kind == "csv" else '{"id": 1, "words": "a"}\n'
    )
    with pytest.raises(ValueError, match="other has the columns id.*; expected one called text"):
        read_texts(tmp_path / "other", kind)
    (tmp_path / "none").write_bytes(b"\xff\xfe\0{")
    with pytest.raises(ValueError, match=f"none cannot be read as {kind}: "):
        read_texts(tmp_path / "none", kind)


@pytest.mark.parametrize("vocabulary, tokens", [("bytes", 10), ("characters", 6)])
def test_bytes_and_characters_are_tokens(vocabulary, tokens):
    tokenizer, text = make_tokenizer(vocabulary), "aé\n🦜b\0"
    ids = tokenizer.encode(text, allowed_special="all")
    assert len(ids) == tokens
    assert tokenizer.decode(ids) == text and max(ids) < tokenizer.n_vocab
    assert b"".join(map(tokenizer.decode_single_token_bytes, ids)) == text.encode() == tokenizer.decode_bytes(ids)
    assert make_tokenizer("bytes").decode([0xF0, 0x9F]) == "�"
