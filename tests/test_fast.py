"""What is done differently for speed gives the same numbers, has a switch, and is named. Importing sets nothing."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from oracles import ROOT, kgram, lstm, random_tokens, transformer

import helpers
from workbook import fast, machine

MODELS = {"k-gram": kgram, "LSTM": lstm, "Transformer": transformer}


@pytest.fixture
def calls(monkeypatch):
    """The operator, and how often it ran."""
    if not fast.has_onednn_linear():
        pytest.skip("this PyTorch has no oneDNN product")
    operator, made = torch.ops.mkldnn._linear_pointwise, []
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *a: made.append(a) or operator(*a))
    return made


def in_a_process(source):
    """What a Python of its own prints."""
    command = [sys.executable, "-c", source]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# ---------------------------------------------------------------- oneDNN's product


@pytest.mark.parametrize("state", ["on", "off", "missing"])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (7, 5), (3, 4, 5), (0, 5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_product_is_the_same_in_any_state(monkeypatch, state, gradients, dtype, shape, with_bias):
    fast.use_onednn_linear(state != "off")
    if state == "missing":
        monkeypatch.setattr(fast, "has_onednn_linear", lambda: False)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=generator).to(dtype) for size in (shape, (6, 5), (6,)))
    bias = bias if with_bias else None
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(fast.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
        spread = fast.linear(x, weight[:, ::1].t().contiguous().t(), bias)  # another layout in memory
    torch.testing.assert_close(spread, torch.nn.functional.linear(x, weight, bias))


def test_the_operator_runs_where_it_may_and_nowhere_else(monkeypatch, calls):
    x, weight = torch.randn(4, 5), torch.randn(6, 5)
    fast.linear(x, weight)
    assert not calls  # gradients may be needed
    with torch.no_grad():
        fast.linear(x, weight)
        assert len(calls) == 1
        fast.linear(x.double(), weight.double())
        fast.use_onednn_linear(False)
        fast.linear(x, weight)
        fast.use_onednn_linear()
        monkeypatch.setattr(fast, "has_onednn_linear", lambda: False)
        fast.linear(x, weight)
    assert len(calls) == 1


@pytest.mark.parametrize("name", MODELS)
def test_losses_gradients_and_texts_are_the_same_with_and_without(calls, tokenizer, name):
    found = {}
    for on in (True, False):
        fast.use_onednn_linear(on)
        model, tokens = MODELS[name](), random_tokens(9, 4)
        model.head.weight.data *= 3
        loss = helpers.next_token_loss(model, tokens)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        stream = helpers.token_stream(model, tokens, top_p=0.9)
        found[on] = loss, gradients, [next(stream)[0].tolist() for _ in range(20)]
        assert bool(calls) is on
        calls.clear()
    torch.testing.assert_close(found[True][0], found[False][0])
    for one, other in zip(found[True][1], found[False][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert found[True][2] == found[False][2]


def test_generated_text_is_the_same_with_and_without(calls, tokenizer):
    model, texts = kgram(vocab_size=50_257), []
    for on in (True, False):
        fast.use_onednn_linear(on)
        texts.append(helpers.generate(model, tokenizer, "0 1", 20, top_p=0.9))
    assert texts[0] == texts[1] and len(texts[0]) > 10


# ---------------------------------------------------------------- memory

LOSSES = """
import torch
from helpers import LSTMSeqModel
from workbook.config import TrainingConfig
from workbook.fast import keep_memory, settings
from workbook.training import train

def losses(on):
    assert (keep_memory(on) and on) == settings()["keep_memory"]
    torch.manual_seed(0)
    model, batches = LSTMSeqModel(20_000, 8, 512), list(torch.randint(20_000, (2, 5, 4)))  # a head of 41 MB
    return train(model, batches, TrainingConfig(steps=3), progress=False)["loss"].tolist()

print([losses(False), losses(True), losses(False)])
"""


def test_losses_are_the_same_whether_memory_is_kept_or_not():
    plain, kept, again = json.loads(in_a_process(LOSSES))
    assert kept == plain == again and len(set(plain)) == 3


FAULTS = """
import resource
import torch
from workbook.fast import keep_memory

def faults():
    torch.ones(20_000_000)  # 80 MB, and then fewer: a block of the very same size may lack the room to be aligned
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(15_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = min(faults() for _ in range(4))
took_hold, kept = keep_memory(), min(faults() for _ in range(4))
print(took_hold, plain, kept, keep_memory(False), min(faults() for _ in range(4)))
"""


def test_kept_memory_costs_no_new_pages_and_can_be_given_up_again():
    took_hold, plain, kept, _, given_up = in_a_process(FAULTS).split()  # alone: others have memory left from before
    if took_hold == "False":
        pytest.skip("no glibc here")
    assert int(kept) < int(plain) / 4 and int(kept) < int(given_up) / 4, (plain, kept, given_up)


def test_memory_settings_that_are_missing_here_say_so(monkeypatch):
    def missing(_):
        raise OSError

    monkeypatch.setattr(fast.ctypes, "CDLL", missing)
    assert fast.keep_memory() is False and fast.settings()["keep_memory"] is False


# ---------------------------------------------------------------- switches and their names


def test_settings_say_what_is_on(monkeypatch):
    assert list(fast.settings()) == ["onednn_linear", "keep_memory", "large_pages"]
    for on in (True, False):
        fast.use_onednn_linear(on)
        fast.use_large_pages(on)
        assert fast.settings()["onednn_linear"] is (on and fast.has_onednn_linear())
        assert fast.settings()["large_pages"] is on and os.environ["THP_MEM_ALLOC_ENABLE"] == str(int(on))
    fast.use_onednn_linear()
    monkeypatch.setattr(fast, "has_onednn_linear", lambda: False)
    assert fast.settings()["onednn_linear"] is False  # asked for, but not here


@pytest.mark.parametrize("on", [True, False])
def test_set_up_asks_for_large_pages_and_a_run_row_names_all_three(on):
    machine.set_up(large_pages=on)
    row = machine.describe_machine("cpu")
    assert row["large_pages"] is on is (os.environ["THP_MEM_ALLOC_ENABLE"] == "1")
    assert {name: row[name] for name in fast.settings()} == fast.settings()
    assert row["device"] == "cpu" and row["threads"] == torch.get_num_threads() and row["torch"]


@pytest.mark.parametrize(
    ("lines", "processor", "instructions"),
    [
        (
            "model name\t: Xeon 6\nflags\t\t: fpu avx2 avx512f avx512_bf16_not amx_bf16\n",
            "Xeon 6",
            "avx2 avx512f amx_bf16",
        ),
        ("Features\t: fp asimd bf16 sve\n", platform.machine(), "asimd bf16"),
        ("", platform.machine(), ""),
    ],
)
def test_a_run_row_names_the_processor_and_its_instructions(monkeypatch, tmp_path, lines, processor, instructions):
    (tmp_path / "cpuinfo").write_text(2 * lines)  # two cores
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    row = machine.describe_machine("cpu")
    assert (row["processor"], row["instructions"]) == (processor, instructions)


IMPORTS = """
import json, os, sys
import pandas, torch

before, threads, state = dict(os.environ), torch.get_num_threads(), torch.get_rng_state()
import helpers
report = {"loaded": [name for name in ("matplotlib", "datasets", "scipy", "nbformat") if name in sys.modules]}
report["workbook"] = sorted(name for name in sys.modules if name.partition(".")[0] in ("workbook", "data", "figures"))
import importlib, pathlib, random
import numpy, matplotlib, matplotlib.pyplot
style, order = dict(matplotlib.rcParams), random.getstate()
options = pandas.get_option("display.float_format"), pandas.get_option("display.max_rows")
for path in sorted(pathlib.Path("workbook").glob("*.py")):
    importlib.import_module(f"workbook.{path.stem}")
report["environment"] = {name: os.environ.get(name) for name in {*before, *os.environ}
                         if before.get(name) != os.environ.get(name)}
report["same"] = [torch.get_num_threads() == threads, torch.equal(torch.get_rng_state(), state),
                  dict(matplotlib.rcParams) == style, random.getstate() == order, torch.is_grad_enabled(),
                  options == (pandas.get_option("display.float_format"), pandas.get_option("display.max_rows"))]
print(json.dumps(report))
"""


NEEDED = ["workbook", *(f"workbook.{name}" for name in ("fast", "files", "sequences", "store", "text"))]


def test_importing_sets_nothing_and_the_models_need_no_pictures():
    report = json.loads(in_a_process(IMPORTS))
    assert report["loaded"] == [] and report["workbook"] == NEEDED
    assert report["environment"] == {} and report["same"] == [True] * 6
