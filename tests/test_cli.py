"""The command line: the notes' command word for word, the effect of each option, each kind of bad value."""

import contextlib
import dataclasses as dc
import functools
import importlib.util
import io
import itertools
import math
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from oracles import ROOT
from safetensors.torch import load_file, load_model
from test_config import EFFECT, NEEDY

from helpers import TokenEmbedding
from workbook import fast
from workbook.__main__ import main as workbook_main
from workbook.config import BatchConfig, ModelConfig, SampleConfig, TextConfig, TrainingConfig
from workbook.experiment import build_model, read_text

NOTES = (
    "python3 pico-llm.py --tinystories_weight 0.0 --input_files 3seqs.txt --block_size 32 --max_steps_per_epoch 1 "
    "--kgram_k 2 --embed_size 64 --device_id cpu"
)
QUICK = (
    "--input_files 3seqs.txt --tinystories_weight 0 --block_size 12 --batch_size 8 --embed_size 8 --models kgram "
    "--epochs 1 --max_steps_per_epoch 2 --prompt 0 --device_id cpu"
)


@pytest.fixture(scope="session")
def pico_llm():
    spec = importlib.util.spec_from_file_location("pico_llm", ROOT / "pico-llm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run(pico_llm):
    """Runs main with QUICK and some more options; returns what it printed, less the speed."""

    def run(more=""):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            pico_llm.main(shlex.split(QUICK) + shlex.split(more))
        return re.sub(r"[\d,]+ tokens/s", "", printed.getvalue())

    return run


@pytest.fixture(scope="session")
def usual(run):
    """What `run` returned for these options the first time."""
    return functools.cache(run)


def results(printed):
    """What was computed, without what only repeats an option: losses, targets, and the text of samples."""
    lines = re.findall(r"mean loss ([\d.]+), ([\d,]+) tokens|^  [^|]*\| (.*)", printed, flags=re.M)
    assert lines
    return lines


def test_the_command_of_the_notes():
    command = [sys.executable, *shlex.split(NOTES)[1:]]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    losses = [float(loss) for loss in re.findall(r"epoch \d/3: mean loss ([\d.]+)", result.stdout)]
    assert len(losses) == 6 and "1 threads" in result.stdout  # three epochs of the LSTM and of the k-gram
    for one, two, three in (losses[:3], losses[3:]):
        assert 11 > one > two > three > 10.5
    for setting in ("greedy", "p = 0.95", "p = 1.0"):
        assert len(re.findall(rf"^  {setting} *\| ['\"][01] [12] [234].+", result.stdout, flags=re.M)) == 6


@pytest.mark.parametrize(
    "option",
    [
        "--tinystories_weight 1",
        "--tinystories_weight 0.5",
        "--block_size 20",
        "--models lstm",
        "--models transformer",
        "--embed_size 9",
        "--hidden_size 9",
        "--table_std 3",
        "--kgram_k 2",
        "--num_inner_mlp_layers 2",
        "--epochs 2",
        "--max_steps_per_epoch 3",
        "--batch_size 9",
        "--learning_rate 0.01",
        "--seed 1",
        "--schedule cosine",
        "--bfloat16",
        "--optimizer muon",
        "--weight_decay 0.9 --learning_rate 0.1",
        "--clip 0.001 --max_steps_per_epoch 4 --schedule cosine",
        "--corpus_contexts",
        "--corpus_contexts 1",
        "--corpus_contexts --blanks 0.9",
        "--dropout 0.5",
        "--similar_lengths",
        "--head tied",
        "--compact",
        "--samples 2",
        "--prompt 1",
        "--max_new_tokens 9",
        "--top_p 0.5",
        "--top_k 2",
        "--temperature 3",
        "--repetition_penalty 2",
        "--windows",
        "--vocabulary bytes",
        "--vocabulary characters",
        "--monosemantic_enabled",
        "--monosemantic_enabled head",
    ],
)
def test_each_option_changes_what_is_computed(run, usual, option):
    assert results(run(option)) != results(usual())


def test_the_same_options_print_the_same(run, usual):
    assert run() == usual()


@pytest.mark.parametrize(
    "option", ["--n_heads 2", "--n_blocks 1", "--norm post", "--positions none", "--positions learned"]
)
def test_each_option_of_the_transformer_changes_what_is_computed(run, usual, option):
    options = "--models transformer --learning_rate 0.01 --max_steps_per_epoch 4"
    assert results(run(f"{options} {option}")) != results(usual(options))


def test_a_block_is_cut_to_its_size_in_files_and_in_stories(run):
    """A batch of 8 lines that are longer than the block has 8 x (block - 1) targets."""
    for size in (12, 20):
        assert f", {2 * 8 * (size - 1)} tokens" in run(f"--block_size {size}")
        assert f", {2 * 8 * (size - 1)} tokens" in run(f"--block_size {size} --tinystories_weight 1")


def test_input_files_and_stories_change_the_text(run, tmp_path):
    (tmp_path / "mine.txt").write_text("a b c d e f g\n" * 9)
    (tmp_path / "tales.txt").write_text("<|endoftext|>\n".join(f"Tale {i} ends well.\n" for i in range(40)))
    assert "mine.txt: 9 sequences (distinct texts: 1)" in run(f"--input_files {tmp_path / 'mine.txt'}")
    builtin = run("--tinystories_weight 1")
    assert "builtin: 2000 sequences" in builtin and "3seqs" not in builtin
    assert run(f"--tinystories_weight 1 --stories {tmp_path / 'tales.txt'}") != builtin


def test_samples_end_before_the_stop_text(run):
    learnt = "--epochs 3 --max_steps_per_epoch 12 --learning_rate 0.05 --embed_size 16 --prompt '0 1 2' --top_p 0.5"
    samples = re.findall(r"\| '(.*)'", run(learnt))[-2:]
    assert [sample.startswith("0 1 2 3 4 5") for sample in samples] == [True, True], samples
    assert re.findall(r"\| '(.*)'", run(f"{learnt} --stop ' 5'"))[-2:] == ["0 1 2 3 4"] * 2


def test_annotated_samples_hold_the_text_and_neighbours_of_each_new_token(run):
    lines = run("--monosemantic_enabled --max_new_tokens 4 --prompt 'a 🦜'").splitlines()
    samples = [line.split(" | ", 1)[1] for line in lines if " | " in line]
    assert len(samples) == 6  # greedy, p = 0.95, p = 1.0, each with its annotation
    for text, annotated in zip(samples[::2], samples[1::2], strict=True):
        assert annotated.startswith("a 🦜") and 1 <= annotated.count("[NN=") <= 4
        assert text[1:-1].startswith("a 🦜")
    assert run("--monosemantic_enabled head") != run("--monosemantic_enabled")
    stopped = run("--monosemantic_enabled --max_new_tokens 0 --prompt 'a 🦜'").splitlines()
    assert [line.split(" | ", 1)[1] for line in stopped if " | " in line] == ["'a 🦜'", "a 🦜"] * 3


def test_chunks_change_the_work_and_not_the_result(pico_llm, run):
    assert build_model("k-gram", ModelConfig(kgram_chunk_size=5), 100).chunk_size == 5
    chunked, whole = (re.search(r"mean loss ([\d.]+)", run(more)).group(1) for more in ("--kgram_chunk_size 5", ""))
    assert float(chunked) == pytest.approx(float(whole), abs=2e-4)


def test_output_dir_keeps_losses_and_weights(run, tmp_path):
    run(f"--output_dir {tmp_path / 'new' / 'folder'}")
    folder = tmp_path / "new" / "folder"
    names = [".lock", "k-gram.checkpoint.pt", "k-gram.csv", "k-gram.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert len(pd.read_csv(folder / "k-gram.csv")) == 2
    assert load_file(folder / "k-gram.safetensors")["net.embedding.weight"].shape == (50_257, 8)


def test_tied_weights_are_saved_once_and_come_back(pico_llm, run, tmp_path):
    run(f"--models transformer --output_dir {tmp_path}")
    model = build_model("Transformer", ModelConfig(embed_size=8), 50_257)
    before = model.embedding.weight.clone()
    load_model(model, tmp_path / "Transformer.safetensors")
    assert model.head.weight is model.embedding.weight and not torch.equal(before, model.embedding.weight)
    assert len(load_file(tmp_path / "Transformer.safetensors")) == len(dict(model.named_parameters()))


def test_resume_goes_on_where_a_training_stopped(pico_llm, run, capsys, tmp_path):
    whole = re.findall(r"mean loss ([\d.]+)", run("--epochs 4"))
    run(f"--epochs 2 --output_dir {tmp_path}")
    resumed = run(f"--epochs 4 --output_dir {tmp_path} --resume")
    assert "goes on from" in resumed and re.findall(r"mean loss ([\d.]+)", resumed) == whole[2:]
    assert len(pd.read_csv(tmp_path / "k-gram.csv")) == 8
    kept = (tmp_path / "k-gram.checkpoint.pt").read_bytes()
    for options, says in {"": "--resume goes on, or name another folder", "--resume --seed 1": "seed 0, now 1"}.items():
        with pytest.raises(SystemExit):
            pico_llm.main(shlex.split(QUICK) + shlex.split(f"--output_dir {tmp_path} {options}"))
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert (tmp_path / "k-gram.checkpoint.pt").read_bytes() == kept


def torchrun(options):
    """The command line in two processes on this machine; what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "pico-llm.py", *shlex.split(QUICK)]
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, *shlex.split(options)], cwd=ROOT, env=here, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_two_processes_have_the_losses_of_one(run, tmp_path):
    options = "--models lstm kgram transformer --batch_size 7 --clip 1 --max_steps_per_epoch 4 --output_dir"
    run(f"{options} {tmp_path / 'one'}")
    printed = torchrun(f"{options} {tmp_path / 'two'}")
    assert "2 processes" in printed and printed.count("epoch 1/1") == 3  # one of them speaks
    for model in ("LSTM", "k-gram", "Transformer"):
        one, two = (pd.read_csv(tmp_path / folder / f"{model}.csv") for folder in ("one", "two"))
        assert one["tokens"].tolist() == two["tokens"].tolist() and len(two) == 4  # one of them writes
        assert two["loss"].tolist() == pytest.approx(one["loss"].tolist(), abs=2e-6)
        weights = [load_file(tmp_path / folder / f"{model}.safetensors") for folder in ("one", "two")]
        for name, weight in weights[0].items():
            assert torch.allclose(weight, weights[1][name], atol=1e-4), name


def test_two_processes_go_on_from_the_checkpoint_of_one(run, tmp_path):
    options = "--compact --corpus_contexts --blanks 0.2 --batch_size 15 --output_dir"
    run(f"{options} {tmp_path / 'one'} --epochs 4")
    run(f"{options} {tmp_path / 'two'} --epochs 2")
    printed = torchrun(f"{options} {tmp_path / 'two'} --epochs 4 --resume")
    one, two = (pd.read_csv(tmp_path / folder / "k-gram.csv")["loss"].tolist() for folder in ("one", "two"))
    assert "goes on from" in printed and two == pytest.approx(one, abs=2e-6) and len(two) == 8


def test_two_processes_go_on_with_the_dropout_and_the_patience_that_they_had(tmp_path):
    """The rate makes the validation loss rise: with patience both processes end, and after the same step."""
    text = "--tinystories_weight 1 --stories small --max_stories 40 --validation_stories 8 --compact --prompt Once"
    options = f"{text} --models lstm --dropout 0.5 --output_dir"
    torchrun(f"{options} {tmp_path / 'one'} --steps 6")
    torchrun(f"{options} {tmp_path / 'two'} --steps 3")
    torchrun(f"{options} {tmp_path / 'two'} --steps 6 --resume")
    one, two = (pd.read_csv(tmp_path / folder / "LSTM.csv")["loss"].tolist() for folder in ("one", "two"))
    assert one == two
    torchrun(f"{options} {tmp_path / 'three'} --steps 60 --learning_rate 3 --validate_every 1 --patience 2")
    assert 3 <= len(pd.read_csv(tmp_path / "three" / "LSTM.csv")) < 60


def test_patience_ends_a_training_without_other_options(run, tmp_path):
    text = "--tinystories_weight 1 --stories small --max_stories 40 --validation_stories 8 --compact --prompt Once"
    run(f"{text} --learning_rate 3 --steps 900 --patience 2 --output_dir {tmp_path}")
    rows = pd.read_csv(tmp_path / "k-gram.csv").dropna(subset="validation_loss")
    assert rows["step"].tolist()[:2] == [100, 200] and 300 <= rows["step"].iloc[-1] < 900
    assert (rows["validation_loss"].iloc[-2:] >= rows["validation_loss"].iloc[:-2].min()).all()


def test_compile_reaches_the_net_and_the_blocks(run, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__))
    for name in ("k-gram", "Transformer", "LSTM"):
        build_model(name, ModelConfig(compile=True, n_blocks=3), 100)
    assert compiled == ["EmbeddingMLP"] + ["TransformerBlock"] * 3
    assert "LSTM: --compile leaves it as it is" in run("--models LSTM --compile")


def test_budgets_end_the_training(run, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: 0.25 * next(ticks))  # each step takes 0.25 s
    printed = run("--budget_seconds 1.4 --max_new_tokens 1")
    assert "6 steps, 528 tokens in 1.5 s" in printed and "epoch 3:" in printed
    steps, tokens = run("--steps 3"), run("--budget_tokens 400")  # 88 targets a step, 2 steps an epoch
    assert "epoch 1:" in steps and "epoch 2:" not in steps and "epoch 2:" in tokens and "epoch 3:" not in tokens


def test_speed_settings_are_recorded_as_they_were(run, workbook_out):
    run("--record tale --label usual")
    run("--record tale --label plain --no-onednn_linear --no-keep_memory --no-large_pages")
    rows = pd.read_csv(workbook_out / "runs" / "tale_summary.csv").set_index("model")
    assert not rows.loc["plain", ["onednn_linear", "keep_memory", "large_pages"]].any()
    assert rows.loc["usual", "large_pages"] and rows.loc["usual", "onednn_linear"] == fast.has_onednn_linear()
    assert rows["final_loss"].nunique() == 1  # they change the speed and nothing else


def test_a_run_row_says_how_to_make_it_again(run, workbook_out):
    printed = run("--record tale --kgram_k 2 --learning_rate 0.01 --clip 1 --label first")
    row = pd.read_csv(workbook_out / "runs" / "tale_summary.csv").iloc[0]
    configs = (TextConfig, ModelConfig, BatchConfig, TrainingConfig)
    fields = {field.name for config in configs for field in dc.fields(config)}
    assert fields <= set(row.index) and row["models"] == "k-gram"
    switches = {name for name in fields if isinstance(row[name], (bool, np.bool_))}  # all off here
    given = [f"--{name} {row[name]}" for name in sorted(fields - switches) if pd.notna(row[name])]
    again = run(" ".join(given) + " --record tale --label again")
    assert results(printed) == results(again)


def test_a_missing_device_falls_back_with_one_line(pico_llm, capsys):
    pico_llm.main(shlex.split(QUICK) + ["--device_id", "cuda:7"])
    captured = capsys.readouterr()
    assert captured.err.strip() == "note: device cuda:7 is not available here; using the CPU instead"
    assert captured.out.startswith("device cpu")


@pytest.mark.parametrize(
    "options, says",
    [
        ("--kgram_k 0", "--kgram_k: 0 is out of range; expected 1 to 1,000"),
        ("--kgram_k two", "--kgram_k: invalid whole number value: 'two'"),
        ("--block_size 1", "--block_size: 1 is out of range; expected 2 to"),
        ("--tinystories_weight 1.5", "expected 0 to 1"),
        ("--tinystories_weight nan", "--tinystories_weight: nan is out of range"),
        ("--learning_rate 0", "expected above 0"),
        ("--learning_rate inf", "--learning_rate: inf is out of range"),
        ("--embed_size -3", "--embed_size"),
        ("--models transformer2", "--models: invalid choice: 'transformer2'"),
        ("--models transformer --n_heads 3", "d_model is 8, n_heads 3"),
        ("--norm layer", "--norm: invalid choice"),
        ("--no_such_option", "--no_such_option"),
        ("--device_id gpu9", "gpu9"),
        ("--input_files absent.txt", "absent.txt"),
        ("--tinystories_weight 0.5 --stories absent.txt", "absent.txt"),
        ("--prompt ''", "--prompt"),
        ("--top_p 0", "--top_p: 0 is out of range; expected above 0 to 1"),
        ("--top_p 0.5 1.5", "--top_p: 1.5 is out of range"),
        ("--top_p", "--top_p: expected at least one argument"),
        ("--top_k 0", "--top_k: 0 is out of range"),
        ("--temperature 0", "--temperature: 0 is out of range"),
        ("--max_new_tokens -1", "--max_new_tokens: -1 is out of range"),
        ("--stop ''", "--stop: it is empty"),
        ("--seed -1", "--seed"),
        ("--resume", "--resume needs --output_dir"),
        ("--budget_seconds 0", "--budget_seconds: 0 is out of range"),
        ("--schedule linear", "--schedule: invalid choice"),
        ("--corpus_contexts 2", "--corpus_contexts: 2 is out of range"),
        ("--corpus_contexts --tinystories_weight 0.5", "cannot mix files and stories"),
        ("--validation_stories 10", "--validation_stories needs stories"),
        ("--compact --prompt cat", "['cat'] not among the"),
        ("--embedding_from absent.safetensors", "absent.safetensors"),
        ("--optimizer sgd", "--optimizer: invalid choice"),
        ("--label x --models lstm kgram", "--label names one model"),
        ("--kgram_net onehot", "--kgram_net is 'onehot'; expected one of embedding, pooled, one-hot, convolution"),
        ("--kgram_net one-hot --head tied", "OneHotMLP has no embedding for a tied head to share"),
        ("--record a/b", "run name 'a/b' is none; expected 200 bytes or fewer, no /, no dot in front"),
        ("--record ..", "run name '..' is none"),
        (f"--record {'x' * 300}", "expected 200 bytes or fewer"),
        ("--epochs 99999999999999999999", "--epochs"),
        ("--embed_size 1000000", "not enough memory: "),
        ("--tinystories_weight 0 --input_files", "leaves no text"),
    ],
)
def test_bad_values_end_with_one_line_and_code_2(pico_llm, capsys, options, says):
    with pytest.raises(SystemExit) as stopped:
        pico_llm.main(shlex.split(QUICK) + shlex.split(options))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and says in error
    assert error.startswith("pico-llm.py: error: ") and error.count("\n") == 1


def test_options_without_effect_are_named_in_one_note(pico_llm, run, usual, capsys):
    same = run("--n_heads 2 --max_stories 9 --save_every 3 --validate_every 5")
    assert results(same) == results(usual())
    needs = "--max_stories (needs stories), --n_heads (needs --models Transformer), --save_every (needs --output_dir), "
    assert (
        capsys.readouterr().err == f"note: without effect here: {needs}--validate_every (needs --validation_stories)\n"
    )


VALUES = {  # of options that need something: one that is not the usual one
    "tinystories_weight": "0.7",
    "stories": "small",
    "kgram_net": "pooled",
    "blanks": "0.5",
    "corpus_contexts": "",
    "top_p": "0.5 0.6",
    "stop": "1",
    "monosemantic_enabled": "",
    "n_blocks": "1",
    "repetition_penalty": "1.5",
    "label": "other",
    "validate_every": "1",
}


@pytest.mark.parametrize("field", NEEDY, ids=[field.name for field in NEEDY])
def test_an_option_without_effect_changes_nothing_and_is_named(pico_llm, run, usual, capsys, field):
    without = EFFECT[field.metadata["needs"]][1]
    others = [choice for choice in field.metadata.get("choices", ()) if choice != field.default]
    value = "" if isinstance(field.default, bool) else VALUES.get(field.name, [*others, "2"][0])
    if field.name == "validation_stories":
        assert (
            "needs stories to train on"
            in fails(pico_llm, capsys, [*shlex.split(without), "--validation_stories", "2"])[0]
        )
        return
    before = usual(without)
    capsys.readouterr()
    after = run(f"{without} --{field.name} {value}")
    before, after = ({re.sub("['\"]", "", line) for line in map(str, results(printed))} for printed in (before, after))
    assert after == before
    assert f"without effect here: --{field.name} (needs " in capsys.readouterr().err


def fails(pico_llm, capsys, options):
    """The one line that these options end with, after QUICK; what was printed before."""
    with pytest.raises(SystemExit) as stopped:
        pico_llm.main(shlex.split(QUICK) + options)
    printed = capsys.readouterr()
    said = printed.err.splitlines()
    assert stopped.value.code == 2 and [line for line in said if not line.startswith("note: ")] == said[-1:]
    return printed.err, printed.out


LATER = {  # what would be wrong after some minutes: the options, what the error says
    "a later model": (["--models", "kgram", "transformer", "--n_heads", "3"], "d_model is 8, n_heads 3"),
    "no embedding": (
        ["--kgram_net", "one-hot", "--monosemantic_enabled"],
        "table is 'embedding'; this KGramMLPSeqModel has head",
    ),
    "a stop text": (["--stop", "a\udcff"], "argument --stop: it is no UTF-8 text"),
    "a prompt": (["--prompt", "a\udcff"], "argument --prompt: it is no UTF-8 text"),
    "an unknown prompt": (["--compact", "--prompt", "cat dog " * 999], "and 1994 more not among the"),
    "endless stories": (
        ["--tinystories_weight", "1", "--max_stories", "999999999"],
        "give a limit of 1,000,000 or fewer",
    ),
}


@pytest.mark.parametrize("options, says", LATER.values(), ids=LATER)
def test_what_can_be_known_is_said_before_any_training(pico_llm, capsys, options, says):
    error, printed = fails(pico_llm, capsys, options)
    assert says in error and "epoch 1" not in printed


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x10\0\0\0\0\0\0\0{}"])
def test_a_file_that_holds_no_weights_says_so(pico_llm, capsys, tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    error, _ = fails(pico_llm, capsys, ["--embedding_from", str(tmp_path / "w.safetensors")])
    assert "w.safetensors holds no weights" in error and "expected a .safetensors file of --output_dir" in error


def test_a_second_training_in_a_folder_is_refused(pico_llm, run, capsys, tmp_path):
    with FileLock(tmp_path / ".lock"):
        error, _ = fails(pico_llm, capsys, ["--output_dir", str(tmp_path)])
    assert "another training writes to" in error
    run(f"--output_dir {tmp_path}")


def test_a_folder_without_a_checkpoint_is_nothing_to_go_on_from(pico_llm, capsys, tmp_path):
    error, _ = fails(pico_llm, capsys, ["--output_dir", str(tmp_path), "--resume"])
    assert "holds no checkpoint of k-gram; leave it out to begin" in error


def test_a_line_end_in_the_stop_text_may_be_written_as_two_characters():
    read = [SampleConfig(stop=text).stop for text in (None, r"\n\n", "a\tb", r"a\tb")]
    assert read == [None, "\n\n", "a\tb", "a\tb"]


@pytest.mark.parametrize(
    "options",
    ["", "--models lstm --compact --prompt '0 1'", "--models transformer --vocabulary characters --head free"],
)
def test_saved_weights_write_what_the_training_wrote_in_the_end(run, tmp_path, capsys, options):
    drawn = "--prompt 0 --samples 2 --top_p 0.9 --repetition_penalty 1.1 --max_new_tokens 9"
    printed = run(f"{options} --output_dir {tmp_path} {drawn}")
    (weights,) = tmp_path.glob("*.safetensors")
    workbook_main(["sample", str(weights), *shlex.split(drawn)])
    assert capsys.readouterr().out.splitlines() == re.findall("^  .*[|].*", printed, flags=re.M)
    with pytest.raises(SystemExit):
        workbook_main(["sample", str(tmp_path / "absent.safetensors")])
    assert "absent.safetensors" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="no shell that limits the size of files")
@pytest.mark.parametrize("blocks, whole", [(1, 0), (2000, 0), (12000, 1)])  # of 1,024 bytes
def test_a_full_disk_is_said_in_one_line_and_leaves_no_half_files(tmp_path, blocks, whole):
    """A checkpoint has 10 MB, the weights alone 3.4."""
    words = shlex.join(
        [sys.executable, "pico-llm.py", *shlex.split(QUICK), "--output_dir", str(tmp_path), "--record", "x"]
    )
    command, here = ["bash", "-c", f"ulimit -f {blocks}; exec {words}"], {**os.environ, "WORKBOOK_OUT": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True, timeout=120)
    said = done.stderr.splitlines()
    assert done.returncode == (0 if whole else 2) and len(said) == (0 if whole else 1), done.stderr
    assert whole or "is the disk full?" in said[0]
    assert not list(tmp_path.rglob("*.partial"))
    for path in tmp_path.glob("*.pt"):
        torch.load(path, weights_only=True)
    assert bool(list(tmp_path.glob("*.safetensors"))) == bool(whole)


@pytest.mark.parametrize("option", ["output_dir", "embedding_from", "input_files", "stories"])
@pytest.mark.parametrize("path", ["/proc/none/x", "{file}/x", "{long}", "a\x00b"])
def test_a_place_that_cannot_be_is_said_in_one_line(pico_llm, capsys, tmp_path, option, path):
    (tmp_path / "file").touch()
    path = path.format(file=tmp_path / "file", long=tmp_path / ("x" * 300))
    error, printed = fails(
        pico_llm, capsys, [f"--{option}", path, "--tinystories_weight", str(int(option == "stories"))]
    )
    assert "epoch 1" not in printed and len(error) < 900


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_from_outside_saves_and_the_rest_is_that_of_an_unbroken_run(run, tmp_path, number):
    """A real process, stopped in its first model; what --resume ends with."""
    options = "--models lstm kgram --dropout 0.3 --optimizer muon --epochs 400 --max_new_tokens 0 --output_dir"
    command = [sys.executable, "-u", "pico-llm.py", *shlex.split(QUICK), *shlex.split(f"{options} {tmp_path / 'two'}")]
    here = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process: sums in the same order
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    with subprocess.Popen(command, cwd=ROOT, env=here, **pipes) as process:
        for line in process.stdout:
            if line.startswith("epoch 3/"):
                process.send_signal(number)
                break
        printed, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number and "k-gram:" not in printed
    assert re.search(r"note: LSTM: stopped after step \d+; kept in .*LSTM\.checkpoint\.pt", said)
    run(f"{options} {tmp_path / 'two'} --resume")
    run(f"{options} {tmp_path / 'one'}")
    for model in ("LSTM", "k-gram"):
        one, two = (pd.read_csv(tmp_path / folder / f"{model}.csv") for folder in ("one", "two"))
        assert one["loss"].tolist() == two["loss"].tolist() and len(one) == 800


def test_a_kill_at_any_moment_loses_nothing_that_was_saved(run, tmp_path):
    """Killed over and over, each time a little later, until it is through: as if it had never been killed."""
    options = "--models lstm --dropout 0.3 --optimizer muon --epochs 60 --save_every 1 --max_new_tokens 0 --output_dir"
    command = [sys.executable, "-u", "pico-llm.py", *shlex.split(QUICK), *shlex.split(f"{options} {tmp_path / 'two'}")]
    rng, kills = random.Random(0), 0
    while not (tmp_path / "two" / "LSTM.safetensors").exists():
        resume = ["--resume"] if (tmp_path / "two" / "LSTM.checkpoint.pt").exists() else []
        here = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process: sums in the same order
        with subprocess.Popen([*command, *resume], cwd=ROOT, env=here, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.startswith("epoch ") and rng.random() < 0.2:
                    time.sleep(0.01 * rng.random())
                    process.kill()
                    kills += 1
                    break
    assert kills > 3
    run(f"{options} {tmp_path / 'one'}")
    one, two = (pd.read_csv(tmp_path / folder / "LSTM.csv")["loss"].tolist() for folder in ("one", "two"))
    assert one == two and len(one) == 120
    weights = [load_file(tmp_path / folder / "LSTM.safetensors") for folder in ("one", "two")]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert not list((tmp_path / "two").glob("*.partial"))


DYING = """
import os, pathlib, runpy, sys
left, replace = int(sys.argv.pop(1)), pathlib.Path.replace
def counted(path, target):
    global left
    left -= 1
    return replace(path, target) if left else os._exit(9)
pathlib.Path.replace = counted
sys.argv[0] = "pico-llm.py"
runpy.run_path("pico-llm.py", run_name="__main__")
"""


def test_a_death_inside_any_write_leaves_whole_files_and_the_rest_can_be_done(run, tmp_path, monkeypatch):
    """The first process dies in its first write, the next one in its second, until one has no more to write."""
    options = "--models lstm --dropout 0.3 --optimizer muon --save_every 1 --record tale --output_dir"
    command = [sys.executable, "-c", DYING]
    files = {tmp_path / "two": tmp_path / "runs", tmp_path / "one": tmp_path / "whole" / "runs"}
    for death in itertools.count(1):
        resume = ["--resume"] if (tmp_path / "two" / "LSTM.checkpoint.pt").exists() else []
        words = [str(death), *shlex.split(QUICK), *shlex.split(f"{options} {tmp_path / 'two'}"), *resume]
        here = {**os.environ, "OMP_NUM_THREADS": "1", "WORKBOOK_OUT": str(tmp_path)}
        done = subprocess.run([*command, *words], cwd=ROOT, env=here, capture_output=True, text=True, timeout=120)
        for path in [*(tmp_path / "two").glob("*.csv"), *(tmp_path / "runs").glob("*.csv")]:
            assert len(pd.read_csv(path)), path
        for path in (tmp_path / "two").glob("*.safetensors"):
            load_file(path)
        if done.returncode != 9:
            break
    assert done.returncode == 0 and death > 7, done.stderr  # checkpoints, losses, weights and four tables
    monkeypatch.setenv("WORKBOOK_OUT", str(tmp_path / "whole"))
    run(f"{options} {tmp_path / 'one'}")
    for name in ("tale", "tale_samples"):
        one, two = (pd.read_csv(folder / f"{name}.csv") for folder in files.values())
        assert one.get("loss", one.get("text")).tolist() == two.get("loss", two.get("text")).tolist()
    assert not list((tmp_path / "two").glob("*.partial"))


def no_socket(*_, **__):
    raise AssertionError("a socket was opened")


def test_local_text_opens_no_socket(run, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.setattr(socket, "create_connection", no_socket)
    (tmp_path / "tale.txt").write_text("\n\n".join(f"Once there was a {n}. It went home." for n in range(300)))
    assert "300 distinct" not in run(f"--stories {tmp_path}/tale.txt --tinystories_weight 1 --validation_stories 2")


def test_a_machine_without_a_network_does_all_but_the_hub(tmp_path):
    alone = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    command = [*alone, sys.executable, "pico-llm.py", *shlex.split(QUICK)]
    for options, code in (("--stories small --tinystories_weight 1", 0), ("--stories hub --tinystories_weight 1", 2)):
        done = subprocess.run([*command, *shlex.split(options)], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
    assert "cannot be fetched from the hub" in done.stderr.splitlines()[-1]  # before it the hub's own library speaks


@pytest.mark.parametrize("option", ["input_files", "stories"])
def test_what_is_no_file_says_what_it_is(pico_llm, capsys, tmp_path, option):
    os.mkfifo(tmp_path / "pipe")
    for path, says in ((tmp_path / "pipe", "is a pipe or a device"), (tmp_path, "folder|train.txt")):
        error, _ = fails(
            pico_llm, capsys, [f"--{option}", str(path), "--tinystories_weight", str(int(option == "stories"))]
        )
        assert re.search(says, error)


def test_a_checkpoint_of_another_model_says_so(pico_llm, run, capsys, tmp_path):
    run(f"--output_dir {tmp_path}")
    with pytest.raises(SystemExit):
        pico_llm.main(shlex.split(QUICK) + shlex.split(f"--output_dir {tmp_path} --resume --embed_size 10"))
    error = capsys.readouterr().err
    assert "k-gram.checkpoint.pt is of another model" in error and error.count("\n") == 1


def test_binary_input_and_divergence_end_with_one_line(pico_llm, capsys, tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    for options in (
        f"--input_files {tmp_path / 'picture.png'}",
        "--learning_rate 1e30 --max_steps_per_epoch 6 --epochs 3",
    ):
        with pytest.raises(SystemExit) as stopped:
            pico_llm.main(shlex.split(QUICK) + shlex.split(options))
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1, error


def test_help_names_each_option(pico_llm):
    text = pico_llm.build_parser().format_help()
    for action in pico_llm.build_parser()._actions:
        assert action.help and action.option_strings[-1] in text


STORIES = (
    "--tinystories_weight 1 --stories small --max_stories 60 --block_size 40 --prompt Once --validation_stories 30"
)


def test_validation_and_records(run, workbook_out):
    shown = run(f"{STORIES} --compact --record tale --samples 2 --validate_every 1 --log_every 2")
    found = re.search(r"validation: ([\d.]+) nats a token, perplexity .* order 4 ([\d.]+), mixed ([\d.]+)", shown)
    net, counted, mixed = map(float, found.groups())
    assert mixed <= counted < net  # two steps of training are no match for counts
    run(f"{STORIES} --compact --record tale --seed 1 --label other")
    runs = {path.stem: pd.read_csv(path) for path in (workbook_out / "runs").glob("*.csv")}
    assert sorted(runs) == ["tale", "tale_positions", "tale_samples", "tale_summary"]
    summary = runs["tale_summary"].set_index("model")
    assert summary.index.tolist() == ["k-gram", "other"] and summary["seed"].tolist() == [0, 1]
    assert summary.loc["k-gram", "validation_loss"] == pytest.approx(net, abs=1e-4)
    assert summary.loc["k-gram", "vocab_size"] < 300 and summary["data_hash"].nunique() == 1
    steps, samples = runs["tale"], runs["tale_samples"]
    assert summary["steps"].tolist() == [2, 2]  # with epochs as the budget, too
    assert steps.query("model == 'k-gram'")["step"].tolist() == [2] and steps["validation_loss"].notna().iloc[0]
    assert samples.query("model == 'k-gram'")["setting"].tolist() == ["greedy"] + ["p = 0.95"] * 2 + ["p = 1.0"] * 2
    positions = runs["tale_positions"].query("model == 'k-gram'")
    weighted = (positions["loss"] * positions["targets"]).sum() / positions["targets"].sum()
    assert weighted == pytest.approx(net, abs=1e-3) and positions["from"].tolist()[:4] == [1, 2, 3, 4]
    assert positions["to"].max() == 39  # the last span ends where the longest story does


def test_the_first_loss_of_a_unigram_bias_is_the_unigrams(run, workbook_out):
    """The first row's loss is that of the untrained model: near that of the token frequencies, not near ln V."""
    for name, option in (("plain", ""), ("frequent", "--unigram_bias")):
        run(f"{STORIES} --compact --models lstm --record {name} {option} --steps 1 --batch_size 60")
    plain, frequent = (pd.read_csv(workbook_out / "runs" / f"{name}.csv")["loss"][0] for name in ("plain", "frequent"))
    config = TextConfig(stories="small", max_stories=60, block_size=40, compact=True)
    data = read_text(config, 3)
    targets = torch.cat([sequence[1:] for sequence in data.sequences])
    share = targets.bincount(minlength=data.vocab_size) / len(targets)
    unigram = -share[targets].log().mean().item()
    assert abs(frequent - unigram) < 0.1 and abs(plain - math.log(data.vocab_size)) < 0.1 and plain > unigram + 0.5


@pytest.mark.parametrize("net", ["embedding", "pooled", "one-hot", "convolution"])
def test_each_net_of_the_kgram_trains_and_the_row_names_it(run, workbook_out, net):
    run(f"--kgram_net {net} --kgram_k 5 --record nets")
    (row,) = pd.read_csv(workbook_out / "runs" / "nets_summary.csv").to_dict("records")
    assert row["kgram_net"] == net and row["kgram_k"] == 5
    assert type(build_model("k-gram", ModelConfig(kgram_net=net), 90).net).__name__ in (
        "EmbeddingMLP",
        "PooledMLP",
        "OneHotMLP",
        "ConvHybrid",
    )


def test_auto_says_what_it_took_and_the_row_has_it(run, workbook_out):
    shown = run("--bfloat16 auto --record narrow")
    taken = re.search(r"bfloat16 auto: (on|off); forward and backward take off \d+ ms, on \d+ ms", shown)[1]
    (row,) = pd.read_csv(workbook_out / "runs" / "narrow_summary.csv").to_dict("records")
    assert row["bfloat16"] == taken
    assert results(run(f"--bfloat16 {taken} --record again")) == results(shown)


@pytest.mark.parametrize("model", ["one-hot", "embedding", "convolution", "pooled", "LSTM", "Transformer"])
def test_token_tables_are_drawn_as_wide_as_told(model):
    name, net = (model, "embedding") if model in ("LSTM", "Transformer") else ("k-gram", model)
    for head in ("free", "tied") if model != "one-hot" else ("free",):
        built = build_model(name, ModelConfig(kgram_net=net, table_std=0.25, head=head), 900)
        (table,) = [module.weight for module in built.modules() if isinstance(module, TokenEmbedding)]
        assert table.std().item() == pytest.approx(0.25, rel=0.02) and abs(table.mean().item()) < 0.01


def test_a_model_starts_from_anothers_embedding(pico_llm, run, capsys, tmp_path):
    run(f"--models lstm --output_dir {tmp_path}")
    table = load_file(tmp_path / "LSTM.safetensors")["embedding.weight"]
    options = ["--embed_size", "8", "--embedding_from", str(tmp_path / "LSTM.safetensors")]
    model = build_model("k-gram", ModelConfig(embed_size=8, embedding_from=tmp_path / "LSTM.safetensors"), 50_257)
    assert torch.equal(model.net.embedding.weight, table)
    with pytest.raises(SystemExit):
        pico_llm.main(shlex.split(QUICK) + [*options, "--embed_size", "9"])
    assert "is (50257, 8); the k-gram needs (50257, 9)" in capsys.readouterr().err


def test_stories_of_a_folder_and_their_number(run, tmp_path):
    for name, start in (("train", 0), ("valid", 100)):
        tales = "<|endoftext|>".join(f"Tale {i} ends well." for i in range(start, start + 50))
        (tmp_path / f"{name}.txt").write_text(tales)
    options = f"--tinystories_weight 1 --stories {tmp_path} --prompt Tale --compact --validation_stories 9"
    assert f"{tmp_path.name}: 50 sequences" in (shown := run(options))
    assert "validation: 4 stories to choose by and 5 to report on" in shown
    assert f"{tmp_path.name}: 20 sequences" in run(f"{options} --max_stories 20")
    assert re.search(r"[1-9]\d* validation tokens lie outside", shown)
