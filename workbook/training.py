"""Training: optimisers, one training step, one model alone (`train`), several in turn (`compare`)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import signal
import statistics
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from helpers import ContextBatch, SequenceModel, count_targets, evaluate, next_token_loss
from workbook.batches import Batches, Part, data_hash
from workbook.config import TrainingConfig
from workbook.files import write_whole
from workbook.machine import timed

LossFunction = Callable[[Any, Any], Tensor]  # (model, batch) -> a number
STEP_COLUMNS = ["run", "model", "seed", "step", "steps", "tokens", "loss", "step_s", "elapsed_s", "timed"]
STEP_COLUMNS += ["validation_loss"]
GOES_ON = ["seed", "optimizer", "learning_rate", "schedule", "warm_up_share", "weight_decay", "clip"]  # unchanged
GOES_ON += ["max_steps_per_epoch", "bfloat16"]


# ---------------------------------------------------------------- optimisers and the learning rate


def make_optimizers(model: SequenceModel, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019), or with optimizer "muon" Muon for the matrices between embedding and head.

    Weight decay acts on matrices; without it AdamW is Adam (Kingma & Ba 2015). Muon (Jordan et al. 2024) makes all
    singular values of an update about 1; scaled to the size of AdamW's (Liu et al. 2025), it takes twice the
    learning rate here.
    """
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)] + [model.head.weight]
    inner, matrices, others = [], [], []
    for weight in model.parameters():
        in_table = any(weight is table for table in tables)
        if weight.ndim < 2:
            others.append(weight)
        elif config.optimizer == "muon" and weight.ndim == 2 and not in_table:
            inner.append(weight)
        else:
            matrices.append(weight)
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    rate, decay = config.learning_rate, config.weight_decay
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, rate, weight_decay=decay, fused=True)]
    if inner:
        optimizers.append(torch.optim.Muon(inner, 2 * rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def rate_factor(progress: float, warm_up_share: float, schedule: str) -> float:
    """What the learning rate is multiplied by: up in a line over `warm_up_share` of the training, then constant
    or down in half a cosine to a tenth (Loshchilov & Hutter 2017). `progress` runs from 0 to 1."""
    if progress < warm_up_share:
        return max(progress / warm_up_share, 0.01)
    if schedule == "constant":
        return 1.0
    return 0.55 + 0.45 * math.cos(math.pi * (progress - warm_up_share) / (1 - warm_up_share))


# ---------------------------------------------------------------- one step


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of one number over all processes; the number itself where there is one process."""
    if distributed.is_initialized():
        distributed.all_reduce(value)
        value /= world_size()
    return value


def world_size() -> int:
    """How many processes have joined."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def random_states(device: torch.device) -> list[dict[str, Tensor]]:
    """The state of each process's random numbers, which dropout draws from: those of the CPU and those of a GPU."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    every: list[Any] = [own] * world_size()
    if distributed.is_initialized():
        distributed.all_gather_object(every, own)
    return every


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Let this process draw on from one of `random_states`."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def of_first_process(value: Tensor) -> Tensor:
    """The first process's number, in all of them."""
    if distributed.is_initialized():
        distributed.broadcast(value, 0)
    return value


def set_gradients(model: SequenceModel, batch: Any, loss_fn: LossFunction, bfloat16: str) -> Tensor:
    """Put the gradients of a batch's loss in place of the old ones; the loss. `bfloat16` is "on" or "off"."""
    model.zero_grad()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16 == "on"):
        loss = loss_fn(model, batch)
    loss.backward()
    return loss


def settle_bfloat16(
    config: TrainingConfig,
    model: SequenceModel,
    batches: Iterable[Any],
    loss_fn: LossFunction = next_token_loss,
    checkpoint: str | Path | None = None,
    seconds: float = 1.0,
) -> tuple[TrainingConfig, dict[str, float]]:
    """`config` with bfloat16 "auto" settled as "on" or "off", and the seconds of a forward and backward pass with each.

    The faster one on the first batch, both in turn for `seconds`, or that of the checkpoint where there is one, so that
    a training goes on as it began. Where several processes have joined, the first decides. Weights, random state and
    the order of the data stay as they are.
    """
    if config.bfloat16 != "auto":
        return config, {}
    if checkpoint and Path(checkpoint).exists():
        return dataclasses.replace(config, bfloat16=read_checkpoint(checkpoint)["bfloat16"]), {}
    generator: torch.Generator | None = getattr(batches, "generator", None)
    order, device = generator.get_state() if generator else None, model.device
    taken: dict[str, list[float]] = {"off": [], "on": []}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        batch = next(iter(batches)).to(device)
        while len(taken["on"]) < 3 or sum(map(sum, taken.values())) < seconds:
            for way, each in taken.items():
                each.append(timed(set_gradients, model, batch, loss_fn, way, device=device)[0])
    model.zero_grad()
    if generator and order is not None:
        generator.set_state(order)
    medians = {way: statistics.median(each[1:]) for way, each in taken.items()}  # the first of each warms up
    faster = of_first_process(torch.tensor(float(medians["on"] < medians["off"]), device=device))
    return dataclasses.replace(config, bfloat16="on" if faster.item() else "off"), medians


def read_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `Trainer.save` wrote. ValueError for any other file."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        missing = {"model", "counts", "rows", "optimizers", "random", "order", "best_weights", "bfloat16", "settings"}
        missing -= state.keys()
    except (OSError, MemoryError, torch.OutOfMemoryError):  # it may well be one
        raise
    except Exception as error:  # of an empty file, a text, half a file: each has another
        raise ValueError(f"{path} is no checkpoint ({type(error).__name__}); delete it to begin anew") from error
    if missing:
        raise ValueError(f"{path} is no checkpoint: it lacks {', '.join(sorted(missing))}; delete it to begin anew")
    return state


def check_shapes(path: Path, state: Mapping[str, Any], model: SequenceModel) -> None:
    """ValueError where the weights of a checkpoint are not those of a model."""
    saved, own = ({name: value.shape for name, value in each.items()} for each in (state["model"], model.state_dict()))
    if saved != own:
        raise ValueError(f"{path} is of another model; give the sizes it was made with, or delete it")


class Replica(nn.Module):
    """A process's part of the loss, times the number of processes: `DistributedDataParallel` takes the mean of the
    gradients of a `forward`, which so is that of the whole batch."""

    def __init__(self, model: SequenceModel, loss_fn: LossFunction):
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Tensor | ContextBatch, weight: float) -> Tensor:
        return self.loss_fn(self.model, batch) * (weight * world_size())


def weigh(part: Part, device: torch.device) -> Part:
    """A process's part with its share of the weight of all, and with the targets of all."""
    total = torch.tensor([part.weight, part.tokens], device=device)
    distributed.all_reduce(total)
    weight, tokens = total.tolist()
    return part._replace(weight=part.weight / max(weight, 1), tokens=tokens)


class Trainer:
    """One model in training: optimisers, budgets, step rows, its place in the data, and the files that keep them.

    `train` drives one of them through its data, `compare` several of them in turn through the same batches.
    """

    def __init__(
        self,
        model: SequenceModel,
        batches: Iterable[Tensor],
        config: TrainingConfig,
        *,
        name: str = "model",
        run: str = "train",
        loss_fn: LossFunction = next_token_loss,
        checkpoint: str | Path | None = None,
    ):
        self.limits = budgets(config, batches)
        config, _ = settle_bfloat16(config, model, batches, loss_fn, checkpoint)
        self.model, self.batches, self.config, self.loss_fn = model, batches, config, loss_fn
        self.labels = {"run": run, "model": name, "seed": config.seed}
        self.optimizers = make_optimizers(model, config)
        self.rates = [group["lr"] for group in self.groups()]
        self.path = Path(checkpoint) if checkpoint else None
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        self.counts: dict[str, Any] = {"step": 0, "tokens": 0, "elapsed_s": 0.0, "batch": 0, "best": math.inf}
        self.counts |= {"epoch_tokens": 0, "epoch_nats": 0.0, "no_better": 0}
        self.rows: list[dict] = []
        self.best_weights: dict[str, Tensor] | None = None
        self.generator: torch.Generator | None = getattr(batches, "generator", None)  # of the data order
        self.order: Any = self.generator.get_state() if self.generator else None  # as it was when this epoch began

    def groups(self) -> list[dict]:
        """The optimisers' groups of parameters; loading a checkpoint puts new ones in their place."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def progress(self) -> float:
        """The share of the training that is done, by the budget that is nearest to its end."""
        return max(self.counts[key] / limit for key, limit in self.limits.items())

    @property
    def over(self) -> bool:
        """Whether a budget is used up, or the validation loss has not fallen for too long."""
        return self.progress >= 1 or self.counts["no_better"] >= (self.config.patience or math.inf)

    @property
    def epoch(self) -> dict[str, float]:
        """Targets since the epoch began, and the mean loss over them."""
        tokens, nats = self.counts["epoch_tokens"], self.counts["epoch_nats"]
        return {"epoch_tokens": tokens, "epoch_loss": nats / tokens}

    def stream(self) -> Iterator[Tensor]:
        """Batches until the budget is used up, from where the training stands in the data."""
        while not self.over:
            if self.generator:
                self.generator.set_state(self.order)
            for batch in itertools.islice(self.batches, self.counts["batch"], self.config.max_steps_per_epoch):
                yield batch
                if self.over:
                    return
            if not self.counts["batch"]:
                done = f"only {self.counts['step']} steps"
                raise ValueError(f"{done}: batches must be a DataLoader or a list, to be gone through again")
            self.counts |= {"batch": 0, "epoch_tokens": 0, "epoch_nats": 0.0}
            self.order = self.generator.get_state() if self.generator else None

    def update(self, batch: Tensor) -> float:
        """Forward, backward and the optimisers' step; the loss before it. Not finite: the weights stay as they were."""
        loss = set_gradients(self.model, batch, self.loss_fn, self.config.bfloat16)
        if math.isfinite(value := mean_over_processes(loss.detach()).item()):
            if self.config.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
            for optimizer in self.optimizers:
                optimizer.step()
        return value

    def step(self, batch: Any) -> dict:
        """One training step, timed; its row. ValueError where the loss is not finite."""
        share = self.config.warm_up_share
        if share is None:
            share = 0.03 if self.config.schedule == "cosine" else 0.0
        factor = rate_factor(self.progress, share, self.config.schedule)
        for group, rate in zip(self.groups(), self.rates, strict=True):
            group["lr"] = rate * factor
        self.model.train()
        batch = batch.to(self.model.device, non_blocking=True)
        if isinstance(batch, Part):
            batch = weigh(batch, self.model.device)
        tokens = batch.tokens if isinstance(batch, Part) else count_targets(batch, self.model.blank)
        step_s, loss = timed(self.update, batch, device=self.model.device)
        if distributed.is_initialized():  # the first process's clock is everybody's
            step_s = of_first_process(torch.tensor(step_s, device=self.model.device)).item()
        number = self.counts["step"] + 1
        if not math.isfinite(loss):
            name = self.labels["model"]
            raise ValueError(f"{name}: the loss is {loss} at step {number}; try a smaller learning rate")
        row = {"step": number, "steps": 1, "tokens": tokens, "loss": loss}
        row |= {"step_s": step_s, "elapsed_s": self.counts["elapsed_s"] + step_s}
        self.counts |= {"step": number, "batch": self.counts["batch"] + 1, "elapsed_s": row["elapsed_s"]}
        for key in ("tokens", "epoch_tokens"):
            self.counts[key] += row["tokens"]
        self.counts["epoch_nats"] += row["tokens"] * loss
        return self.labels | row | {"timed": number > self.config.untimed_steps}

    def record(self, row: dict) -> None:
        """One step into the last row, or into a new one after every `log_every` steps."""
        if (row["step"] - 1) % self.config.log_every:  # the last row is not full: sums, and the mean loss by tokens
            last = self.rows.pop()
            loss = last["loss"] * last["tokens"] + row["loss"] * row["tokens"]
            row = row | {key: last[key] + row[key] for key in ("steps", "tokens", "step_s")}
            row |= {"loss": loss / row["tokens"], "timed": last["timed"] and row["timed"]}
        self.rows.append(row)

    def write_rows(self, path: str | Path, rows: list[dict], mode: str) -> None:
        """Rows into a file: `w` writes it anew, and whole, `a` adds lines."""
        frame, options = pd.DataFrame(rows, columns=STEP_COLUMNS), {"index": False, "lineterminator": "\n"}
        if mode == "a":
            frame.to_csv(path, mode="a", header=False, **options)
        else:
            write_whole(Path(path), lambda partial: frame.to_csv(partial, **options))

    def validate(self, batches: Iterable[Tensor]) -> None:
        """The validation loss into the last row; the weights are kept where it is the best so far."""
        loss = self.rows[-1]["validation_loss"] = evaluate(self.model, batches)["loss"]
        if not math.isfinite(loss):
            where = f"the validation loss is {loss} after step {self.counts['step']}"
            raise ValueError(f"{self.labels['model']}: {where}; try a smaller learning rate")
        self.counts["no_better"] += 1
        if loss < self.counts["best"]:
            self.counts["no_better"] = 0
            self.counts["best"] = loss
            self.best_weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def advance(self, batch: Tensor, validation: Iterable[Tensor] | None, log: str | Path | None) -> dict:
        """A step and what is due after it: its row, a validation, a line of the log, a checkpoint."""
        leads, validate_every = not self.rank, self.config.validate_every or 100
        row = self.step(batch)
        self.record(row)
        if validation is not None and (self.progress >= 1 or row["step"] % validate_every == 0):
            if leads:
                self.validate(validation)  # and the first process's patience is everybody's
            no_better = torch.tensor(self.counts["no_better"], device=self.model.device)
            self.counts["no_better"] = int(of_first_process(no_better))
        if leads and log and row["step"] % self.config.log_every == 0:
            self.write_rows(log, self.rows[-1:], "a")
        if row["step"] % self.config.save_every == 0:
            self.save()
        return row

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What a training has to go on with: options, the size of its batches, a hash of what it learns from."""
        options = {name: getattr(self.config, name) for name in GOES_ON} | {"dropout": self.model.dropout.p}
        sampler = getattr(self.batches, "batch_sampler", None)
        options |= {"blanks": getattr(getattr(self.batches, "dataset", None), "blanks", None)}
        return options | {"batch_size": getattr(sampler, "batch_size", None), "text": data_hash(self.batches)}

    def save(self) -> None:
        """All that the next step depends on, in one file that is never half written."""
        if self.path is None:
            return
        random = random_states(self.model.device)
        if not self.rank:
            state: dict[str, Any] = {"model": self.model.state_dict(), "counts": self.counts, "rows": self.rows}
            state |= {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}
            state |= {"random": random, "order": self.order, "best_weights": self.best_weights}
            state |= {"bfloat16": self.config.bfloat16, "settings": self.settings}
            write_whole(self.path, lambda path: torch.save(state, path))

    def load(self) -> None:
        """Go on from the checkpoint, where there is one. ValueError where it is of another model, text or option."""
        if self.path is None or not self.path.exists():
            return
        state, now = read_checkpoint(self.path, self.model.device), self.settings
        changed = [f"{name} {was}, now {now[name]}" for name, was in state["settings"].items() if was != now[name]]
        if changed:
            raise ValueError(f"{self.path} was made with {'; '.join(changed)}; go on with the same, or elsewhere")
        check_shapes(self.path, state, self.model)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.counts, self.rows, self.best_weights = state["counts"], state["rows"], state["best_weights"]
        if len(state["random"]) == world_size():  # with more or fewer processes dropout is another one
            set_random_states(state["random"][self.rank], self.model.device)
        self.order = state["order"].cpu() if state["order"] is not None else None

    @contextlib.contextmanager
    def sharing(self) -> Iterator[None]:
        """Under torchrun: read and compute this process's part of each batch, and draw dropout of its own."""
        if not distributed.is_initialized():
            yield
            return
        data = getattr(self.batches, "dataset", None)
        if not isinstance(data, Batches):
            raise TypeError("several processes share the batches of make_batches or CorpusContexts; give one of these")
        replica = DistributedDataParallel(Replica(self.model, self.loss_fn), gradient_as_bucket_view=True)
        self.loss_fn = lambda _, part: replica(part.batch, part.weight)
        torch.manual_seed(torch.initial_seed() + self.rank)
        data.rank, data.processes = self.rank, world_size()
        try:
            yield
        finally:
            data.rank, data.processes = 0, 1


def budgets(config: TrainingConfig, batches: Any) -> dict[str, float]:
    """What ends a training: steps, seconds, tokens; epochs where none of them is given."""
    given = {"step": config.steps, "elapsed_s": config.budget_seconds, "tokens": config.budget_tokens}
    if limits := {key: float(limit) for key, limit in given.items() if limit is not None}:
        return limits
    if not hasattr(batches, "__len__") or not len(batches):
        raise ValueError("batches are empty, or have no length to count epochs by; give a DataLoader, a list, or steps")
    return {"step": config.epochs * min(len(batches), config.max_steps_per_epoch or len(batches))}


def progress_bar(label: str, shown: bool) -> tqdm:
    """A bar from 0 to 1, unless TQDM_DISABLE is set."""
    hidden = not shown or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(
        total=1.0, desc=label, leave=False, disable=hidden, bar_format="{l_bar}{bar}| {elapsed} < {remaining}{postfix}"
    )


class StopSignal:
    """Ctrl-C and SIGTERM wait for the end of a step: `number` is that of the one that came, else 0.

    A second Ctrl-C does not wait. Outside the main thread, and where they are ignored, nothing changes.
    """

    def __init__(self) -> None:
        self.number = 0
        self.usual: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # others get no signals
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # ignored as in a shell's background
                    self.usual[number] = signal.signal(number, self.note)
        return self

    def note(self, number: int, _: Any) -> None:
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def __exit__(self, *_: Any) -> None:
        for number, usual in self.usual.items():
            signal.signal(number, usual)

    def came(self, device: torch.device) -> bool:
        """Whether to stop, which all processes do after the same step."""
        if distributed.is_initialized():
            number = torch.tensor(self.number, device=device)
            distributed.all_reduce(number, distributed.ReduceOp.MAX)
            self.number = max(self.number, int(number))
        return self.number > 0

    def end(self, frame: pd.DataFrame, message: str) -> pd.DataFrame:
        """The rows of a training, said to have been stopped (`frame.attrs["stopped"]`); SIGTERM takes its course."""
        if self.number:
            frame.attrs["stopped"] = self.number
            warnings.warn(message, stacklevel=3)
        if self.number == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
        return frame


# ---------------------------------------------------------------- one model, and several


def train(
    model: SequenceModel,
    batches: Iterable[Tensor],
    config: TrainingConfig = TrainingConfig(),  # noqa: B008  (it is frozen)
    *,
    name: str = "model",
    run: str = "train",
    loss_fn: LossFunction = next_token_loss,
    validation: Iterable[Tensor] | None = None,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train one model until the first of its budgets is used up; its step rows.

    Rows are those of `compare`, each the sum of `config.log_every` steps with their mean loss, and go to the CSV file
    `log` as they come. With `validation` (batches) the row of every `validate_every`-th step (100 where it is None)
    and the last hold `validation_loss`, and in the end the model has the weights that were best on them. `loss_fn`
    and `batches` may be `context_loss` and those of `CorpusContexts`. `checkpoint` is a file written every
    `save_every` steps and at the end; where it exists the training goes on from there with the losses that it would
    have had without a stop. Ctrl-C ends the training after the step in hand, with a warning; SIGTERM then ends the
    process; a second Ctrl-C does not wait, and leaves the file as it was. Where several processes have joined
    (`join_processes`), each computes its part of every batch; the first alone validates, writes and reports.
    ValueError where a loss is not finite (the weights stay as they were), `batches` ends, or `checkpoint` is of another
    model, text, batch size or option.
    """
    trainer = Trainer(model, batches, config, name=name, run=run, loss_fn=loss_fn, checkpoint=checkpoint)
    leads = not trainer.rank
    with trainer.sharing(), StopSignal() as stop, progress_bar(run, progress and leads) as bar:
        trainer.load()
        if log and leads:
            trainer.write_rows(log, trainer.rows[: trainer.counts["step"] // config.log_every], "w")
        for batch in trainer.stream():
            row = trainer.advance(batch, validation, log)
            bar.set_postfix_str(f"loss {row['loss']:.3f}, {row['tokens'] / row['step_s']:,.0f} tokens/s", refresh=False)
            bar.update(min(1.0, trainer.progress) - bar.n)
            if leads and on_step:
                on_step(row | trainer.epoch)
            if stop.came(model.device):
                break
        trainer.save()
    if leads and log:
        trainer.write_rows(log, trainer.rows, "w")  # the last row too, which may not be full
    if trainer.best_weights is not None:
        model.load_state_dict(trainer.best_weights)
    if distributed.is_initialized() and validation is not None:
        for value in model.state_dict().values():
            distributed.broadcast(value, 0)
    kept = f"kept in {trainer.path}" if trainer.path else "its rows are kept"
    return stop.end(pd.DataFrame(trainer.rows), f"{name}: stopped after step {trainer.counts['step']}; {kept}")


def compare(
    models: Mapping[str, SequenceModel],
    batches: Iterable[Tensor],
    config: TrainingConfig = TrainingConfig(),  # noqa: B008
    *,
    run: str = "compare",
    loss_fn: LossFunction | Mapping[str, LossFunction] = next_token_loss,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train all models on the same batches, one step each in turn; the step rows, model by model.

    The model that goes first changes from step to step, so that a noisy machine hits all alike. The budget must be
    one that all use up together: steps or epochs. `loss_fn` may differ by name; `on_step` gets each step row, outside
    the clock. A step row holds run, model, seed, step, steps (how many it sums: `log_every`), tokens (real targets),
    loss (nats, before the update), step_s and elapsed_s (seconds in this model's own steps) and timed (False for the
    first `untimed_steps`, which no rate counts). Ctrl-C ends the training after a step of all models. ValueError where
    a loss is not finite (the weights stay as they were) or `batches` ends early.
    """
    if not models:
        raise ValueError("there is no model to train; expected {name: model}")
    if config.budget_seconds is not None or config.budget_tokens is not None:
        raise ValueError("compare trains for steps or epochs; expected no budget_seconds and no budget_tokens")
    loss_fns = loss_fn if isinstance(loss_fn, Mapping) else dict.fromkeys(models, loss_fn)
    trainers = {
        name: Trainer(model, batches, config, name=name, run=run, loss_fn=loss_fns[name])
        for name, model in models.items()
    }
    names = list(models)
    leader = trainers[names[0]]
    with StopSignal() as stop, progress_bar(run, progress) as bar:
        for number, batch in enumerate(leader.stream(), start=1):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                row = trainers[name].step(batch)
                trainers[name].record(row)
                if on_step:
                    on_step(row)
            bar.update(min(1.0, leader.progress) - bar.n)
            if stop.number:
                break
    rows = pd.DataFrame([row for trainer in trainers.values() for row in trainer.rows])
    return stop.end(rows, f"{run}: stopped after step {leader.counts['step']} of each model; the rows are kept")
