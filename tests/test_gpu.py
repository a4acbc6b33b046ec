"""On a GPU (CUDA): models, loss, sampling, training, resume, processes, notebooks: `python -m pytest -m gpu`.

Where there is none these are skipped. The last test needs none: PyTorch makes tensors on a device without memory there,
so one that does not say where it belongs meets those of the model, and is an error.
"""

import shlex
import subprocess
import sys

import pandas as pd
import pytest
import torch
from oracles import ROOT, kgram, lstm, random_batches, random_tokens, transformer

from helpers import context_loss, evaluate, next_token_loss, sample_token, target_log_probabilities, token_stream
from workbook.batches import CorpusContexts
from workbook.config import TrainingConfig
from workbook.notebooks import FOLDER, execute
from workbook.training import train

MODELS = {"k-gram": kgram, "LSTM": lstm, "Transformer": transformer}
of_each_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def on_gpu(test):
    """A test of the tier `gpu`."""
    here = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
    return pytest.mark.gpu(here(test))


def losses(model, **options):
    config = TrainingConfig(**{"steps": 8, "learning_rate": 1e-2, "clip": 1.0} | options)
    return train(model, random_batches(), config, progress=False)["loss"].tolist()


@on_gpu
@of_each_model
def test_logits_loss_and_gradients_are_those_of_the_cpu(build):
    tokens, here, there = random_tokens(12, 3), build(), build().cuda()
    assert torch.allclose(there(tokens.cuda()).cpu(), here(tokens), atol=1e-4)
    for model in (here, there):
        next_token_loss(model, tokens.to(model.device)).backward()
    for one, other in zip(here.parameters(), there.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad.cpu(), atol=1e-4)


@on_gpu
@of_each_model
def test_a_text_is_drawn_there_as_here(build):
    prompt = random_tokens(4, 2)
    drawn = []
    for device in ("cpu", "cuda"):
        stream = token_stream(build().to(device), prompt.to(device), top_p=0.9, top_k=20, repetition_penalty=1.2)
        drawn.append([next(stream)[0].cpu().tolist() for _ in range(12)])
    assert drawn[0] == drawn[1]


@on_gpu
def test_draws_by_a_generator_of_the_gpu_have_their_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().cuda().expand(100_000, 3)
    drawn = sample_token(logits, top_p=1.0, generator=torch.Generator("cuda").manual_seed(0))
    share = drawn.bincount(minlength=3) / len(drawn)
    assert torch.allclose(share.cpu(), torch.tensor([0.5, 0.3, 0.2]), atol=0.01)


@on_gpu
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("bfloat16", ["off", "on"])
@of_each_model
def test_training_lowers_the_loss(build, optimizer, bfloat16):
    found = losses(build().cuda(), steps=60, optimizer=optimizer, bfloat16=bfloat16)
    assert sum(found[-4:]) < sum(found[:4])


@on_gpu
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_goes_on_where_it_was_stopped(optimizer, tmp_path):
    def run(steps, **more):
        config = TrainingConfig(steps=steps, learning_rate=1e-2, optimizer=optimizer)
        return train(lstm().cuda(), random_batches(), config, progress=False, **more)["loss"].tolist()

    path = tmp_path / "checkpoint.pt"
    run(3, checkpoint=path)
    assert run(8, checkpoint=path) == pytest.approx(run(8), abs=1e-6)


@on_gpu
@pytest.mark.parametrize("models", ["lstm kgram transformer", "kgram --corpus_contexts --unigram_bias"])
def test_the_command_line_takes_as_many_processes_as_there_are_gpus(models, tmp_path):
    options = f"--models {models} --stories small --max_stories 60 --steps 6 --max_new_tokens 5 --device_id cuda"
    parallel = f"-m torch.distributed.run --nproc-per-node={torch.cuda.device_count()}"
    tables = []
    for way in ("", parallel):
        folder = tmp_path / str(len(tables))
        command = [sys.executable, *shlex.split(way), "pico-llm.py", *shlex.split(options), "--output_dir", str(folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert "device cuda" in done.stdout
        tables.append(pd.read_csv(folder / "k-gram.csv")["loss"].tolist())
    assert tables[0] == pytest.approx(tables[1], abs=1e-3)


@on_gpu
@pytest.mark.parametrize("number", ["01", "02", "03", "04"])
def test_a_notebook_runs_there(number, workbook_out):
    (path,) = FOLDER.glob(f"{number}_*.ipynb")
    notebook, _ = execute(path, {"DEVICE": "cuda"})
    assert not [
        output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"
    ]
    rows = [pd.read_csv(run) for run in (workbook_out / "runs").glob("*_summary.csv")]
    assert any(row["device"].eq("cuda").all() for row in rows if "device" in row)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@of_each_model
def test_no_tensor_is_made_on_another_device_than_the_models(build, optimizer):
    model, batches = build(), random_batches()
    contexts = list(CorpusContexts(batches[0].t(), 3, 40).batches(4)) if build is kgram else []
    config = TrainingConfig(steps=3, optimizer=optimizer, clip=1.0, schedule="cosine", weight_decay=0.1, bfloat16="on")
    with torch.device("meta"):
        train(model, batches, config, validation=batches, progress=False)
        if contexts:
            train(model, contexts, config, loss_fn=context_loss, progress=False)
        evaluate(model, batches)
        target_log_probabilities(model, list(batches[0].t()))
        stream = token_stream(model, batches[0], top_p=0.9, top_k=20, repetition_penalty=1.2)
        drawn = [next(stream)[0] for _ in range(3)]
    assert {tokens.device.type for tokens in drawn} == {"cpu"}
