"""What one training step costs: each way of notebook 5 timed in a process of its own; growth, threads, a new token.

A process for each way, so that none profits from memory that another left behind, and the plain ones have PyTorch
as it comes. `python -m workbook.benchmark` is such a process: its first line of input is a setting, the others ask.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.profiler import profile, record_function

from helpers import (
    KGramMLPSeqModel,
    LSTMSeqModel,
    SequenceModel,
    TransformerModel,
    context_loss,
    context_windows,
    count_targets,
    distinct_contexts,
    next_token_loss,
)
from workbook.batches import CorpusContexts, make_batches, pad_batch
from workbook.config import TrainingConfig
from workbook.counts import KneserNey
from workbook.fast import keep_memory
from workbook.findings import KGRAM_K, PARTS
from workbook.machine import describe_machine, peak_memory, set_up, synchronize, timed
from workbook.notebooks import notebook_module
from workbook.records import ROOT
from workbook.sequences import Sequences
from workbook.text import (
    VOCAB_SIZE,
    compact_vocabulary,
    encode_source,
    encode_texts,
    load_stories,
    load_tokenizer,
    read_sequences,
    text_name,
    write_stories,
)
from workbook.training import train

EMBED_SIZE, HIDDEN_SIZE, LAYERS, BATCH_SIZE = 64, 256, 2, 32
BLOCK_SIZE = {"3seqs.txt": 32, "stories": 64}
WAYS = {  # way: its loss, whether Adam is fused
    "loop": ("loop_loss", False),
    "one batch": ("batch_loss", False),
    "one batch, memory reuse": ("batch_loss", False),  # beside the ladder
    "lookup": ("batch_loss", False),
    "distinct contexts": ("distinct_loss", False),
    "chunked head": ("next_token_loss", False),
    "fused Adam": ("next_token_loss", True),
    "memory reuse": ("next_token_loss", True),
    "corpus contexts": ("context_loss", True),
    "≈ compact": ("context_loss", True),
    "≈ bfloat16": ("context_loss", True),
    "≈ compiled": ("context_loss", True),
}
LITERAL = ["loop", "one batch", "one batch, memory reuse"]  # one-hot as a product with rows of zeros and a one
REUSE = ["one batch, memory reuse", *list(WAYS)[7:]]
GRID = {
    "k": [1, 2, 4, 8, 16, 32],
    "V": [1_000, 3_000, 10_000, 30_000, 100_000],
    "N": [256, 1024, 4096, 16384],
    "E": [16, 32, 64, 128, 256],
    "H": [64, 128, 256, 512],
}
BASE = {"k": 3, "V": 10_000, "N": 1024, "E": 64, "H": 128}
UNUSED = {"one-hot": "E", "LSTM": "k", "Transformer": "kE"}  # sizes that a model does not have


def nets() -> ModuleType:
    """The designs, the loop and the batch of notebook 2, with what was added to its cell DESIGNS."""
    return notebook_module("02_kgram_architectures", "imports", "design", "export", "loop")


def loss_of(way: str) -> Callable[[SequenceModel, Tensor], Tensor]:
    """The loss function of a way: from helpers.py, or from the notebook that teaches it."""
    name, _ = WAYS[way]
    taught = notebook_module("05_cost_of_a_token", "imports", "way").distinct_loss
    known = {"next_token_loss": next_token_loss, "context_loss": context_loss, "distinct_loss": taught}
    return known[name] if name in known else getattr(nets(), name)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A design in one of the ways on `text`, "3seqs.txt" or "stories"; the stories come from `source`."""

    design: str
    way: str
    text: str
    source: str = "builtin"
    separator: str | None = None
    device: str = "cpu"


def read_text(text: str, source: str, separator: str | None = None) -> tuple[Sequences, Tensor]:
    """The training sequences of a text and its first batch (T, B)."""
    tokenizer, block_size = load_tokenizer(), BLOCK_SIZE[text]
    if text == "3seqs.txt":
        sequences = read_sequences(text, tokenizer, block_size)
    else:
        sequences = encode_texts(load_stories(source, "train", 8000, separator=separator), tokenizer, block_size)
    return sequences, next(iter(make_batches(sequences, BATCH_SIZE, seed=0)))


def real_contexts(batch: Tensor, k: int) -> Tensor:
    """The contexts (N, k) of a batch's targets."""
    return context_windows(batch[:-1], k, VOCAB_SIZE).flatten(0, 1)[batch[1:].flatten() != VOCAB_SIZE]


def build(design: str, k: int, vocab_size: int = VOCAB_SIZE, literal: bool = False) -> KGramMLPSeqModel:
    """A design at the notes' sizes; `literal`: the one-hot design as a product with one-hot rows."""
    torch.manual_seed(0)
    net = nets().OneHotLiteral if literal and design == "one-hot" else nets().DESIGNS[design]
    return KGramMLPSeqModel(net(vocab_size, k, EMBED_SIZE, HIDDEN_SIZE, LAYERS), vocab_size=vocab_size, k=k)


class Step:
    """One training step of a setting; it counts for `tokens` targets. The loop takes 16 of them and is scaled."""

    def __init__(self, setting: Setting):
        way, k, vocab_size = setting.way, KGRAM_K[setting.text], VOCAB_SIZE
        keep_memory(way in REUSE)
        sequences, batch = read_text(setting.text, setting.source, setting.separator)
        self.loss_fn, self.device = loss_of(way), torch.device(setting.device)
        self.narrow = way in ("≈ bfloat16", "≈ compiled")
        if self.loss_fn is context_loss:
            rows = len(distinct_contexts(context_windows(batch[:-1], k, VOCAB_SIZE).flatten(0, 1), VOCAB_SIZE)[0])
            if way.startswith("≈"):
                sequences, ids = compact_vocabulary(sequences)
                vocab_size = len(ids)
            batch = next(iter(CorpusContexts(sequences, k, vocab_size).batches(rows)))  # as many as the batch has
        self.tokens, self.scale = count_targets(batch, vocab_size), 1.0
        if way == "loop":
            batch = batch[:3, :8]
            self.scale = self.tokens / count_targets(batch)
        self.batch = batch.to(self.device)
        self.model = build(setting.design, k, vocab_size, literal=way in LITERAL).to(self.device)
        self.adam = torch.optim.Adam(self.model.parameters(), 1e-3, fused=WAYS[way][1] or None)
        if way == "≈ compiled":
            self.model.net.forward = torch.compile(self.model.net.forward)
        for part, module in (("net", self.model.net), ("head", self.model.head)):
            module.forward = record_function(part)(module.forward)  # the profiler's names, from outside
        begin, steps = time.perf_counter(), 0
        while steps < 15 and time.perf_counter() - begin < 1.5:  # to warm up
            self.run()
            steps += 1

    def run(self) -> None:
        self.gradients()
        self.update()

    def gradients(self) -> None:
        self.adam.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.narrow):
            loss = self.loss_fn(self.model, self.batch)
        with record_function("backward"):
            loss.backward()

    def update(self) -> None:
        with record_function("optimiser"):
            self.adam.step()

    def measure_time(self) -> dict:
        """Medians over the steps of half a second, or over one; the first, to warm up, does not count."""
        taken: list[list[float]] = []
        while len(taken) < 2 or torch.tensor(taken).sum() < 0.5:
            taken.append([timed(part, device=self.device)[0] for part in (self.gradients, self.update)])
        gradients, update = torch.tensor(taken[1:]).quantile(0.5, 0).tolist()
        row = {"tokens": self.tokens, "gradients_s": self.scale * gradients, "update_s": update}
        return row | {"step_s": row["gradients_s"] + row["update_s"]}

    def measure_memory(self) -> dict:
        """Peak megabytes above model and optimiser state."""
        self.adam.zero_grad()
        return {"peak_mb": peak_memory(self.run, self.device) / 1e6}

    def measure_parts(self, repeats: int = 3) -> dict:
        """Seconds of each part of a step, from torch.profiler."""
        with profile(record_shapes=True) as profiler:
            for _ in range(repeats):
                self.run()
                synchronize(self.device)
        total = dict.fromkeys(PARTS, 0.0)
        for event in profiler.events() or ():
            part = part_of(event)
            on_device = event.self_device_time_total * (self.device.type == "cuda")
            total[part] += (event.self_cpu_time_total + on_device) * (1.0 if part == "optimiser" else self.scale)
        return {part: microseconds / 1e6 / repeats for part, microseconds in total.items()}

    def describe(self) -> dict:
        return describe_machine(self.device)


def part_of(event) -> str:
    """The part of a step that a profiler's event belongs to: the outermost label around it, or what its name says.

    Inside the chunked head the forward product is the one that takes the bias. What has no label is the loss where a
    name says so, else the making of contexts.
    """
    names, parent = [event.name], event.cpu_parent
    while parent is not None:
        names, parent = [*names, parent.name], parent.cpu_parent
    if any("Adam" in name for name in names):
        return "optimiser"
    if label := next((name for name in reversed(names) if name in PARTS), None):
        return label
    if "_HeadCrossEntropy" in names:
        product = any(word in names[0] for word in ("linear", "mm"))
        return "loss" if not product else "head" if any(len(shape) == 1 for shape in event.input_shapes) else "backward"
    is_loss = any(word in name for name in names for word in ("cross_entropy", "log_softmax", "nll_loss"))
    return "loss" if is_loss else "context"


class Worker:
    """A step in a process of its own: `worker("measure_time")` and so on. RuntimeError with the words of its end."""

    def __init__(self, setting: Setting):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the process)
        command = [sys.executable, "-m", "workbook.benchmark"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )

        self.say(json.dumps(dataclasses.asdict(setting)))

    def say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def __call__(self, what: str) -> dict:
        assert self.process.stdout
        self.say(what)
        if not (answer := self.process.stdout.readline()):
            self.errors.seek(0)
            raise RuntimeError(f"the process ended: {self.errors.read()[-1000:]}")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def climb(settings: Iterable[Setting], rounds: int, parts: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The settings, each in its process, in turn: times in a row for each round; memory (and parts) once."""
    workers, times, once = {setting: Worker(setting) for setting in settings}, [], []
    places = {
        setting: {"text": setting.text, "model": setting.design, "way": setting.way}
        | worker("describe")
        | {"run": "cost_ladder", "stories": text_name(setting.source)}
        for setting, worker in workers.items()
    }
    for number in range(1, rounds + 1):
        for setting, worker in workers.items():
            times.append(places[setting] | {"round": number} | worker("measure_time"))
    for setting, worker in workers.items():
        measured = worker("measure_memory") | (worker("measure_parts") if parts else {})
        once.append(places[setting] | measured)
        worker.close()
    return pd.DataFrame(times), pd.DataFrame(once)


def loss_and_gradients(model: SequenceModel, loss_fn: Callable, batch) -> tuple[float, dict[str, Tensor]]:
    """A loss and the gradient of each parameter; the literal one-hot layer under the names of its lookup."""
    model.zero_grad()
    loss = loss_fn(model, batch)
    loss.backward()
    return loss.item(), {
        name.replace("first.weight", "table.weight").replace("first.bias", "bias"): w.grad.clone()
        for name, w in model.named_parameters()
        if w.grad is not None
    }


def largest_difference(one: tuple, other: tuple) -> float:
    """The largest difference of two losses, or of two gradients as a share of the largest number in them."""
    grads = [(one[1][name], other[1][name]) for name in one[1]]
    grads = [(a.T if a.shape != b.shape else a, b) for a, b in grads]
    return max(abs(one[0] - other[0]), *((a - b).abs().max().div(b.abs().max()).item() for a, b in grads))


def step_memory(model: SequenceModel, tokens: Tensor) -> float:
    """Peak megabytes of a training step above model and optimiser state."""
    optimizer, tokens = torch.optim.Adam(model.parameters(), fused=True), tokens.to(model.device)

    def step() -> None:
        next_token_loss(model, tokens).backward()
        optimizer.step()

    step()  # Adam's state counts with the weights, not with the step
    optimizer.zero_grad()
    return peak_memory(step, model.device) / 1e6


def time_ways(cases: Mapping[tuple[str, str], tuple], rounds: int) -> pd.DataFrame:
    """Seconds of forward and backward of (model, way): (its model, loss, tokens), in turn; round 0 warms up."""
    rows = []
    for number, ((name, way), (model, loss_fn, tokens)) in itertools.product(range(rounds + 1), cases.items()):
        model.zero_grad()
        seconds, _ = timed(lambda: loss_fn(model, tokens).backward(), device=model.device)  # noqa: B023
        row = {"model": name, "way": way, "round": number, "tokens": count_targets(tokens), "step_s": seconds}
        rows.append(row)
    return pd.DataFrame(rows).query("round > 0")


def describe_text(text: str, source: str, separator: str | None = None) -> dict:
    """How often contexts repeat in a text and in its first batch."""
    sequences, batch = read_text(text, source, separator)
    corpus = CorpusContexts(sequences, KGRAM_K[text], VOCAB_SIZE)
    row = {"text": text, "sequences": len(sequences), "batch_targets": count_targets(batch)}
    row |= {"batch_contexts": len(distinct_contexts(real_contexts(batch, KGRAM_K[text]), VOCAB_SIZE)[0])}
    row |= {"corpus_targets": int(corpus.total.sum()), "corpus_contexts": len(corpus)}
    return row | {"ids": len(compact_vocabulary(sequences)[1]), "stories": text_name(source)}


def measure_shares(texts: Mapping[str, Sequence[Tensor]]) -> pd.DataFrame:
    """Distinct contexts as a share of the targets in a first batch, against k and against the batch's size."""
    grid = [(k, 32) for k in (1, 2, 3, 4, 6, 8)] + [(3, size) for size in (1, 4, 16, 64, 256, 1024)]
    rows = []
    for text, sequences in texts.items():
        for k, size in [(k, size) for k, size in grid if size <= len(sequences)]:
            contexts = real_contexts(pad_batch(sequences[:size]), k)
            share = len(distinct_contexts(contexts, VOCAB_SIZE)[0]) / len(contexts)
            rows.append({"text": text, "kgram_k": k, "batch_size": size, "share": share})
    return pd.DataFrame(rows)


def measure_rates(device: torch.device, size: int = 2048, repeats: int = 8) -> pd.DataFrame:
    """The best of products in float32 and bfloat16 (FLOP/s), and of memory (bytes/s, reading and writing)."""
    a, b = torch.randn(2, size, size, device=device)
    x, y = torch.randn(2, 2**25, device=device)
    square = SequenceModel(size, size).to(device)

    def best(function: Callable) -> float:
        return min(timed(function, device=device)[0] for _ in range(repeats))

    with torch.no_grad():
        float32 = min(best(lambda: a @ b), best(lambda: square.logits(a)))
        c, d = a.bfloat16(), b.bfloat16()
        rates = {"float32": 2 * size**3 / float32, "bfloat16": 2 * size**3 / best(lambda: c @ d)}
        moved: list[tuple[int, Callable]] = [(1, x.sum), (2, lambda: y.copy_(x)), (3, lambda: y.add_(x))]
        rates["memory"] = max(4 * 2**25 * arrays / best(function) for arrays, function in moved)
    return pd.DataFrame([rates])


def make_model(name: str, *, k: int, V: int, E: int, H: int, N: int | None = None) -> SequenceModel:
    """A model of these sizes: a design with one inner layer, an LSTM, or a Transformer of two blocks (d = H)."""
    torch.manual_seed(0)
    if name == "LSTM":
        return LSTMSeqModel(V, E, H)
    if name == "Transformer":
        return TransformerModel(V, H, 4, 2)
    return KGramMLPSeqModel(nets().DESIGNS[name](V, k, E, H, 1), vocab_size=V, k=k)


def make_step(name: str, tokens: Tensor, device: torch.device, **sizes: int) -> Callable[[], None]:
    """A function that makes one training step on the tokens (T, B)."""
    model, tokens = make_model(name, **sizes).to(device), tokens.to(device)
    adam = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def step() -> None:
        next_token_loss(model, tokens).backward()
        adam.step()
        adam.zero_grad()  # so that the next peak holds a step's gradients

    return step


def measure_growth(
    axis: str, values: Sequence[int], names: Sequence[str], rounds: int, device: torch.device
) -> pd.DataFrame:
    """Seconds of a step in each round, all sizes and models in turn, and the peak memory of the last."""
    steps: dict[tuple[int, str], Callable] = {}
    for value in values:
        sizes = BASE | {axis: value}
        high = 1000 if axis == "V" else sizes["V"]  # the same tokens for each V
        tokens = torch.randint(high, (33, sizes["N"] // 32), generator=torch.Generator().manual_seed(0))
        wanted = [name for name in names if axis not in UNUSED.get(name, "")]
        steps |= {(value, name): make_step(name, tokens, device, **sizes) for name in wanted}
    rows = []
    for number in range(rounds + 2):
        for (value, name), step in steps.items():
            row = {
                "axis": axis,
                "value": value,
                "model": name,
                "round": number,
                "step_s": timed(step, device=device)[0],
            }
            row["peak_mb"] = peak_memory(step, device) / 1e6 if number == rounds + 1 else math.nan
            rows.append(row)
    return pd.DataFrame(rows).query("round > 1").assign(**describe_machine(device))


def measure_threads(names: Sequence[str], tokens: Tensor, rounds: int, device: torch.device) -> pd.DataFrame:
    """Seconds of a step with one thread and with two, in turn."""
    sizes = {"k": 3, "V": VOCAB_SIZE, "E": EMBED_SIZE, "H": HIDDEN_SIZE}
    steps = {name: make_step(name, tokens, device, **sizes) for name in names}
    before, rows = torch.get_num_threads(), []
    for number in range(rounds + 1):
        for name, threads in [(name, threads) for name in names for threads in (1, 2)]:
            torch.set_num_threads(threads)
            step_s, _ = timed(steps[name], device=device)
            rows.append({"model": name, "threads": threads, "round": number, "step_s": step_s})
    torch.set_num_threads(before)
    return pd.DataFrame(rows).query("round > 0")


def measure_processes(source: str, rounds: int) -> pd.DataFrame:
    """Targets/s and last loss of the command line, with one process of two threads and two of one, in turn."""
    options = "--max_stories 2000 --compact --block_size 64 --batch_size 64 --models k-gram LSTM Transformer "
    options += "--embed_size 64 --hidden_size 256 --epochs 1 --max_steps_per_epoch 30 --max_new_tokens 0 "
    options += "--device_id cpu --prompt One"
    rows = []
    for number, processes in [(number, processes) for number in range(rounds) for processes in (1, 2)]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
            command += [str(ROOT / "pico-llm.py"), "--stories", source, *options.split(), "--output_dir", folder]
            threads = {"OMP_NUM_THREADS": str(2 // processes)}
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, **threads})
            for path in sorted(Path(folder).glob("*.csv")):
                steps = pd.read_csv(path)
                rate = (steps["tokens"] / steps["step_s"])[steps["timed"]].median()
                row = {"model": steps["model"].iloc[0], "processes": processes, "round": number}
                rows.append(row | {"tokens_per_s": rate, "loss": steps["loss"].iloc[-1]})
    return pd.DataFrame(rows)


def measure_sizes(
    counts: Sequence[int], source: str, device: torch.device, separator: str | None = None
) -> pd.DataFrame:
    """Seconds and peak memory of each stage from a text to the first steps, for texts of so many stories.

    The texts are made of the halves of a source's stories (`join_halves`: as many as these make), after a small one to
    warm up. "encode": the text as tokens, the first time; "start": from the call to the end of a model's first step,
    the second time; "step": one of the next (median of 5); "contexts" and "counts": those of k = 3, and Kneser-Ney of
    order 4.
    """
    rows: list[dict[str, Any]] = []
    for stories in [100, *counts]:
        with tempfile.TemporaryDirectory() as place:
            made = write_stories(Path(place, "text"), stories, source, separator)
            stages = list(time_stages(Path(place, "text"), Path(place, "cache"), device))
        tokens = stages[0].pop("tokens")
        rows += [{"stories": made, "tokens": tokens} | row for row in stages]
    frame = pd.DataFrame(rows[len(stages) :]).drop_duplicates(["stories", "stage", "model"])
    return frame.assign(text=text_name(source), **describe_machine(device))


def time_stages(folder: Path, cache: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    """The rows of a text's stages, the first with its number of tokens."""
    read = functools.partial(encode_source, folder, load_tokenizer(), split="train", cache=cache)
    result: Any = None

    def measured(stage: str, function: Callable, model: str = "") -> dict[str, Any]:
        nonlocal result
        found: list[tuple[float, Any]] = []
        peak = peak_memory(lambda: found.append(timed(function, device=device)), device)
        seconds, result = found[0]
        return {"stage": stage, "model": model, "seconds": seconds, "peak_mb": peak / 1e6}

    def first_steps(name: str) -> pd.DataFrame:
        sequences, ids = compact_vocabulary(read().sequences(1024))
        batches = make_batches(sequences, 8, blank=len(ids), similar_lengths=True)
        model = make_model(name, k=3, V=len(ids), E=EMBED_SIZE, H=HIDDEN_SIZE).to(device)
        return train(model, batches, TrainingConfig(steps=6), progress=False)

    row = measured("encode", read)
    yield row | {"tokens": int(result.texts["tokens"].sum())}
    for name in ("LSTM", "Transformer"):
        row = measured("start", functools.partial(first_steps, name), name)
        later = result["step_s"].iloc[1:]
        yield row | {"seconds": row["seconds"] - later.sum()}
        yield row | {"stage": "step", "seconds": later.median(), "peak_mb": math.nan}
    sequences, ids = compact_vocabulary(read().sequences(1024))
    yield measured("contexts", functools.partial(CorpusContexts, sequences, 3, len(ids)))
    yield measured("counts", functools.partial(KneserNey, sequences, len(ids), 4))


@torch.no_grad()
def measure_latency(
    names: Sequence[str], device: torch.device, lengths: Sequence[int] = (16, 128, 1024), repeats: int = 8
) -> pd.DataFrame:
    """Milliseconds of one new token after texts of several lengths, and of the head alone, all in turn."""
    steps: dict[tuple[str, int], Callable] = {}
    for name in names:
        model = make_model(name, k=3, V=VOCAB_SIZE, E=EMBED_SIZE, H=HIDDEN_SIZE).to(device).eval()
        for length in lengths:
            logits, state = model.prefill(torch.randint(VOCAB_SIZE, (length, 1), device=device), model.start(1))
            steps[name, length] = functools.partial(model.step, logits.argmax(-1), state)
    steps["the head", 0] = functools.partial(model.logits, torch.zeros(1, HIDDEN_SIZE, device=device))
    rows = []
    for number in range(repeats):
        for (name, length), step in steps.items():
            ms = 1e3 * timed(step, device=device)[0]
            rows.append({"model": name, "length": length, "round": number, "ms": ms})
    return pd.DataFrame(rows).query("round > 0").assign(**describe_machine(device))


def serve() -> None:
    """Measure a step of the setting, whenever a line of input says what, and print the answer as a line of JSON."""
    setting = Setting(**json.loads(sys.stdin.readline()))
    set_up(0, device=setting.device, large_pages=setting.way in REUSE)  # before any tensor
    step = Step(setting)
    for line in sys.stdin:
        print(json.dumps(getattr(step, line.strip())()), flush=True)


if __name__ == "__main__":
    serve()
