"""Train small language models on sequences, stories or both, and print what they write.

python3 pico-llm.py --tinystories_weight 0.0 --input_files 3seqs.txt --block_size 32 --kgram_k 2
"""

import argparse
import contextlib
import dataclasses
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import distributed

from helpers import count_parameters
from workbook import config as options
from workbook import fast
from workbook.batches import make_batches
from workbook.experiment import (
    Data,
    add_tables,
    build_model,
    choose_batches,
    compiled_parts,
    describe_weights,
    measure,
    net_class,
    read_text,
    start_from_frequencies,
)
from workbook.files import write_whole
from workbook.generation import draw_samples
from workbook.machine import describe_machine, join_processes, peak_memory, set_up
from workbook.neighbours import table_of
from workbook.records import check_name, summarise
from workbook.training import check_shapes, read_checkpoint, settle_bfloat16, train


class Config(NamedTuple):
    """All options, as workbook/config.py has them."""

    text: options.TextConfig
    model: options.ModelConfig
    batch: options.BatchConfig
    training: options.TrainingConfig
    sample: options.SampleConfig
    machine: options.MachineConfig
    output: options.OutputConfig


def build_parser(only_given: bool = False) -> argparse.ArgumentParser:
    """One group of options for each part of `Config`."""
    more: dict[str, Any] = {"prog": "pico-llm.py", "description": __doc__, "only_given": only_given}
    return options.make_parser(*Config.__annotations__.values(), **more)


def read_options(args: argparse.Namespace) -> Config:
    """The parsed options by part. ValueError for some that do not go together."""
    config = Config(*(options.read_config(each, args) for each in Config.__annotations__.values()))
    if config.output.resume and not config.output.output_dir:
        raise ValueError("--resume needs --output_dir, the folder that holds the checkpoints")
    if config.output.output_dir:
        check_folder(config.output.output_dir, config.model.models, config.output.resume)
    if config.output.label and len(config.model.models) > 1:
        raise ValueError("--label names one model; give one of --models at a time")
    mixed = config.text.input_files and 0 < config.text.tinystories_weight < 1
    if "k-gram" in config.model.models and config.batch.corpus_contexts is not None and mixed:
        raise ValueError("--corpus_contexts takes each sequence once; it cannot mix files and stories by weight")
    net_class(config.model.kgram_net)  # an unknown one is an error now
    if config.output.record:
        check_name(config.output.record)
    return config


def check_folder(folder: Path, models: Sequence[str], resume: bool) -> None:
    """ValueError where --output_dir holds a training that would be lost, or with --resume none to go on from."""
    files = {name: (f"{name}.checkpoint.pt", f"{name}.safetensors")[: 1 if resume else 2] for name in models}
    there = [name for name, each in files.items() if any((folder / file).exists() for file in each)]
    if resume and not there:
        raise ValueError(f"--resume: {folder} holds no checkpoint of {' or '.join(models)}; leave it out to begin")
    if there and not resume:
        raise ValueError(f"{folder} holds a training of {', '.join(there)}; --resume goes on, or name another folder")


def one_writer(folder: Path) -> contextlib.AbstractContextManager:
    """Make --output_dir, and hold its lock until the block ends. ValueError where another training holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another training writes to {folder}; name another --output_dir") from error
    for half in folder.glob("*.*.*.partial"):  # of a training that was killed
        if half.name.startswith(tuple(f"{name}." for name in options.MODELS)):
            half.unlink()
    return held


def checkpoint_of(name: str, config: Config) -> Path | None:
    """The file that keeps a model's training, and that it goes on from where it is there."""
    return config.output.output_dir / f"{name}.checkpoint.pt" if config.output.output_dir else None


def longest_text(data: Data, config: Config) -> int:
    """The most tokens that a model has to read: a block of the text, or a prompt and what is drawn after it."""
    prompt = data.tokenizer.encode(config.sample.prompt, allowed_special="all")
    return max(config.text.block_size, len(prompt) + config.sample.max_new_tokens)


class Experiment:
    """One model of a run, from its options to its files."""

    def __init__(self, name: str, data: Data, config: Config, device: torch.device, rank: int):
        self.name, self.data, self.config, self.device, self.rank = name, data, config, device, rank
        self.label = name if config.output.label is None else config.output.label
        self.folder = config.output.output_dir
        torch.manual_seed(config.training.seed)
        self.model = build_model(name, config.model, data.vocab_size, longest_text(data, config)).to(device)
        if config.model.unigram_bias:
            start_from_frequencies(self.model, data.sequences)
        if config.model.compile and not compiled_parts(self.model):
            print(f"{name}: --compile leaves it as it is; its layer is one fused kernel already")
        self.batches = choose_batches(name, data, config.batch, config.training.seed)
        whole = len(self.batches["batches"])
        self.epoch = min(whole, config.training.max_steps_per_epoch or whole)
        self.rows: list[dict] = []

    def report(self, row: dict) -> None:
        """After each epoch: its mean loss and speed, and samples."""
        self.rows.append(row)
        if row["step"] % self.epoch:
            return
        rows, config = self.rows[-self.epoch :], self.config.training
        tokens, loss = row["epoch_tokens"], row["epoch_loss"]
        timed = [row for row in rows if row["timed"]] or rows
        rate = sum(row["tokens"] for row in timed) / sum(row["step_s"] for row in timed)
        of = f"/{config.epochs}" if not (config.steps or config.budget_seconds or config.budget_tokens) else ""
        number = row["step"] // self.epoch
        print(f"epoch {number}{of}: mean loss {loss:.4f}, {tokens:,} tokens, {rate:,.0f} tokens/s")
        self.draw_samples()

    def draw_samples(self) -> list[dict]:
        """Samples by the same random numbers each time, so that they do not depend on how many came before."""
        generator = torch.Generator(self.device).manual_seed(self.config.training.seed)
        return draw_samples(self.model, self.data.tokenizer, self.config.sample, generator)

    def run(self) -> None:
        """Train, print, save and record."""
        size, vocab_size = count_parameters(self.model), self.data.vocab_size
        steps = f"{self.epoch} steps an epoch; ln V = {math.log(vocab_size):.4f}"
        print(f"\n{self.name}: {size['parameters']:,} parameters, {steps}")
        checkpoint = checkpoint_of(self.name, self.config)
        if checkpoint and checkpoint.exists():
            print(f"goes on from {checkpoint}")
        files = {"checkpoint": checkpoint, "log": self.folder / f"{self.name}.csv" if self.folder else None}
        settled, taken = settle_bfloat16(self.config.training, self.model, **self.batches, checkpoint=checkpoint)
        if taken:
            each = ", ".join(f"{way} {1e3 * seconds:.0f} ms" for way, seconds in taken.items())
            print(f"bfloat16 auto: {settled.bfloat16}; forward and backward take {each}")
        self.config = self.config._replace(training=settled)
        config, frames = dataclasses.replace(settled, max_steps_per_epoch=self.epoch), []
        validation = None
        if (config.validate_every or config.patience) and self.data.validation:
            few = {"blank": vocab_size, "shuffle": False, "similar_lengths": True}
            validation = make_batches(self.data.halves[0][:200], 16, **few)
        more = {"validation": validation, "on_step": self.report, "progress": sys.stderr.isatty()}
        labels = {"name": self.label, "run": self.config.output.record or "pico-llm"}

        def work() -> None:
            frames.append(train(self.model, config=config, **labels, **self.batches, **files, **more))

        peak = peak_memory(work, self.device)
        if "stopped" in frames[0].attrs:
            raise KeyboardInterrupt
        if not self.rank:  # what follows is the first process's
            self.finish(frames[0], size | {"vocab_size": vocab_size, "peak_mb": peak / 1e6})

    def finish(self, steps: pd.DataFrame, row: dict) -> None:
        """Samples of an epoch that was left unfinished, weights, validation, and the rows of the record."""
        made, samples, positions = int(steps["step"].iloc[-1]), [], pd.DataFrame()
        if self.config.training.budget_seconds:
            print(f"{made} steps, {steps['tokens'].sum():,} tokens in {steps['step_s'].sum():.1f} s")
        if made % self.epoch or self.config.output.record:
            samples = self.draw_samples()
        if self.folder:
            made_with = describe_weights(self.name, self.config.model, self.data, longest_text(self.data, self.config))
            weights = self.folder / f"{self.name}.safetensors"
            write_whole(weights, lambda path: save_model(self.model, str(path), metadata=made_with))
            print(f"saved {self.name}.csv and {self.name}.safetensors in {self.folder}")
        if self.data.validation:
            measured, positions = measure(self.model, self.data)
            row |= measured
            print(
                "validation: {validation_loss:.4f} nats a token, perplexity {perplexity:.2f}, {bits_per_byte:.4f} bits "
                "a byte; Kneser-Ney of order {kneser_ney_order} {kneser_ney_loss:.4f}, mixed {mixed_loss:.4f}".format(
                    **measured
                )
            )
        if name := self.config.output.record:
            config = self.config
            row |= options.run_columns(config.text, config.model, config.batch, config.training)
            row |= describe_machine(self.device) | {"models": self.name, "data_hash": self.data.data_hash}
            row["stories"] = Path(config.text.stories).name
            del row["steps"]  # the budget; the row has the steps that were made
            labels = {"run": name, "model": self.label, "seed": config.training.seed}
            add_tables(name, labels, steps, summarise(steps).assign(**row), positions, pd.DataFrame(samples))


def run(args: argparse.Namespace, given: Sequence[str] = ()) -> None:
    """Read the text and train each model in turn. ValueError, TypeError, OSError or RuntimeError say what is wrong.

    `given` are the names of the options that were given: those without effect are named in a note.
    """
    config = read_options(args)
    inert = options.without_effect(config, given)
    machine = config.machine
    device = set_up(config.training.seed, device=machine.device_id, large_pages=machine.large_pages)
    rank = join_processes(device)
    fast.keep_memory(machine.keep_memory)
    fast.use_onednn_linear(machine.onednn_linear)
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (the first process speaks for all)
    held = one_writer(config.output.output_dir) if config.output.output_dir and not rank else contextlib.nullcontext()
    with held:
        train_models(config, device, rank, inert)


def train_models(config: Config, device: torch.device, rank: int, inert: Sequence[str]) -> None:
    """Read the text, and train each model on it. What is wrong with a later one is an error before the first."""
    several = f", {distributed.get_world_size()} processes" if distributed.is_initialized() else ""
    print(f"device {device}{several}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    data = read_text(config.text, config.model.kgram_k, 1e9 * config.batch.count_memory, sys.stderr.isatty())
    if inert:
        warnings.warn(f"without effect here: {', '.join(inert)}", stacklevel=1)
    print("\n".join(data.notes))
    config = config._replace(sample=dataclasses.replace(config.sample, prompt=config.sample.prompt or data.opening))
    longest = longest_text(data, config)  # an unknown word of the prompt is an error now, not later
    for name in config.model.models:
        with torch.device("meta"):
            model = build_model(name, config.model, data.vocab_size, longest)
        if config.sample.monosemantic_enabled:
            table_of(model, config.sample.monosemantic_enabled)
        if (path := checkpoint_of(name, config)) and path.exists():
            check_shapes(path, read_checkpoint(path), model)
    for name in config.model.models:
        Experiment(name, data, config, device, rank).run()


def in_one_line(error: Exception) -> str:
    """What is wrong, and where the libraries do not say it what to do."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", text):
        size = re.search(r"allocate (\d+) bytes", text)
        needed = f": {int(size[1]) / 1e9:.1f} GB at once" if size else ""
        return f"not enough memory{needed}; take fewer or smaller batches, blocks, layers, or stories"
    if re.search("file write failed|unexpected pos|No space left|File too large", str(error)):
        return "a file could not be written whole: is the disk full? What was there before is left as it was"
    return text


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args, given = parser.parse_args(argv), vars(build_parser(only_given=True).parse_args(argv))
    usual = signal.signal(signal.SIGTERM, lambda number, _: parser.exit(128 + number, "stopped\n"))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # samples may hold bytes that a terminal cannot show
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
            run(args, [*given])
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError, ImportError, SafetensorError) as error:
        parser.error(in_one_line(error))
    except KeyboardInterrupt:
        parser.exit(130, "stopped\n")
    finally:
        signal.signal(signal.SIGTERM, usual)
        if distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    main()
