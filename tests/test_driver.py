"""Random command lines on odd texts: each ends with exit code 0, or with 2 and one line that says what is wrong.

A few in each run of the tests; for longer: `DRAWS=5000 python -m pytest tests/test_driver.py`.
"""

import os
import random
import shlex
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from test_cli import QUICK, pico_llm  # noqa: F401  (a fixture)
from test_config import FIELDS

DRAWS = int(os.environ.get("DRAWS", 20))
WHOLE = ["-1", "0", "1", "2", "3", "8", "33", "x"]
NUMBERS = ["nan", "inf", "-1", "0", "1e-3", "0.2", "0.5", "1", "x"]
FILES = {
    "empty.txt": b"",
    "one.txt": b"a",
    "nul.txt": b"a b\0c d\n",
    "latin.txt": "é è à\n".encode("latin-1"),
    "wide.txt": "one two\nthree four\n".encode("utf-16"),
    "marked.txt": b"\xef\xbb\xbfone two\nthree four\n",
    "returns.txt": b"one two\rthree four\r\nfive six\n",
    "ends.txt": "one\u2028two\x0bthree\x0cfour\x85five\n".encode(),
    "blanks.txt": b"one" + 300_000 * b" " + b"two\n",
    "book.txt": b"word " * 3000,
    "tale[1].txt": b"\n\n".join(b"Once there was a %d. It went home." % number for number in range(12)),
    "tale.csv": b'text,n\nOne two three.,1\n"Four, five.",2\n',
    "tale.jsonl": b'{"text": "one two three"}\n{"text": null}\n',
    "weights.safetensors": b"version https://git-lfs.github.com/spec/v1\n",
}
WORDS = {
    "stories": ["builtin", "small", "tinystories", *FILES],
    "input_files": ["3seqs.txt", "small", "absent.txt", "/dev/null", ".", *FILES],
    "kgram_net": ["embedding", "pooled", "one-hot", "convolution", "other"],
    "prompt": ["", "0 1", "Once upon", "\x00", "\U0001f600", "<|endoftext|>", "a" * 3000],
    "stop": ["", " ", r"\n", ".", "\u00e9"],
    "device_id": ["cpu", "auto", "cuda", "gpu9", "cuda:7"],
    "record": ["tale", "a/b", "..", "x" * 300, "stories_5min", "NA", "007"],
    "label": ["64", "007", "NA", "a,b", "a\nb", "$$", ""],
    "output_dir": ["out", "new/er", "one.txt", "/proc/none"],
    "embedding_from": ["weights.safetensors", "absent", "."],
}


def draw_option(field, hint, rng):
    """An option with a value that may be wrong."""
    if hint is bool:
        return [rng.choice([f"--{field.name}", f"--no-{field.name}"] if field.default else [f"--{field.name}"])]
    values = [*field.metadata.get("choices", ()), "other"] if "choices" in field.metadata else WORDS.get(field.name)
    values = values or (WHOLE if int in (hint, *get_args(hint)) else NUMBERS)
    return [f"--{field.name}", *(rng.choice(values) for _ in range(rng.choice([1, 1, 1, 2])))]


def draw_command(rng):
    """QUICK, and up to six options that may contradict it and each other."""
    options = [draw_option(field, get_type_hints(each)[field.name], rng) for each, field in FIELDS]
    return shlex.split(QUICK) + [word for option in rng.sample(options, rng.randint(1, 6)) for word in option]


def test_words_are_those_of_options():
    assert WORDS.keys() <= {field.name for each, _ in FIELDS for field in fields(each)}


@pytest.mark.parametrize("seed", range(DRAWS))
def test_a_random_command_line_ends_well(pico_llm, seed, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    command = draw_command(random.Random(seed))
    try:
        pico_llm.main(command)
    except SystemExit as stop:
        said = capsys.readouterr().err.splitlines()
        assert stop.code == 2, command
        assert [line for line in said if not line.startswith("note: ")] == said[-1:], command
        assert said[-1].startswith("pico-llm.py: error: ") and len(said[-1]) < 600, command
