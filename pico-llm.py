"""Train small language models on sequences, stories or both, and print what they write.

python3 pico-llm.py --tinystories_weight 0.0 --input_files 3seqs.txt --block_size 32 --kgram_k 2
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import warnings
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_model
from torch import distributed

from helpers import SequenceModel, annotate, count_parameters, generate
from workbook import fast
from workbook.batches import make_batches
from workbook.config import (
    BatchConfig,
    MachineConfig,
    ModelConfig,
    OutputConfig,
    SampleConfig,
    TextConfig,
    TrainingConfig,
    make_parser,
    read_config,
    run_columns,
)
from workbook.experiment import Text, add_tables, build_model, choose_batches, compiled_parts, measure, read_text
from workbook.machine import describe_machine, join_processes, peak_memory, set_up
from workbook.records import summarise
from workbook.training import train

CONFIGS = (TextConfig, ModelConfig, BatchConfig, TrainingConfig, SampleConfig, MachineConfig, OutputConfig)


def build_parser() -> argparse.ArgumentParser:
    """All options, from the dataclasses of workbook/config.py."""
    return make_parser(*CONFIGS, prog="pico-llm.py", description=__doc__)


def draw_samples(model: SequenceModel, tokenizer, config: SampleConfig, generator: torch.Generator) -> list[dict]:
    """Print a greedy sample and those of each --top_p; below each its annotation, where that is asked for."""
    draw = {"top_k": config.top_k, "temperature": config.temperature, "generator": generator}
    settings = {"greedy": {}} | {f"p = {p}": {"top_p": p, **draw} for p in config.top_p}
    rows = []
    for label in [label for label, setting in settings.items() for _ in range(config.samples if setting else 1)]:
        new: list[int] = []
        options = {"stop": config.stop, "on_token": lambda token, _, new=new: new.append(token), **settings[label]}
        text = generate(model, tokenizer, config.prompt, config.max_new_tokens, **options)
        rows.append({"setting": label, "text": text})
        print(f"  {label:8s} | {text!r}")
        if config.monosemantic_enabled:
            while len(config.prompt + tokenizer.decode(new)) > len(text):  # tokens of the stop text
                new.pop()
            annotated = config.prompt + annotate(model, tokenizer, new, table=config.monosemantic_enabled)
            print(f"  {'':8s} | {annotated}".replace("\n", "\\n"))
    return rows


class Experiment:
    """One model of a run, from its options to its files."""

    def __init__(self, name: str, text: Text, args: argparse.Namespace, device: torch.device, rank: int):
        self.name, self.text, self.device, self.rank = name, text, device, rank
        self.config, self.sample, self.output = (
            read_config(each, args) for each in (TrainingConfig, SampleConfig, OutputConfig)
        )
        self.label = self.output.label or name
        models, batches = read_config(ModelConfig, args), read_config(BatchConfig, args)
        self.columns = run_columns(read_config(TextConfig, args), models, batches, self.config) | {"models": name}
        torch.manual_seed(self.config.seed)
        longest = args.block_size + self.sample.max_new_tokens + 1000  # learned positions; a prompt of 1,000 tokens
        self.model = build_model(name, models, text.vocab_size, longest).to(device)
        if models.compile and not compiled_parts(self.model):
            print(f"{name}: --compile leaves it as it is; its layer is one fused kernel already")
        self.data = choose_batches(name, text, batches, self.config.seed)
        self.epoch = min(len(self.data["batches"]), self.config.max_steps_per_epoch or len(self.data["batches"]))
        self.generator = torch.Generator(device).manual_seed(self.config.seed)  # of the samples alone
        self.rows: list[dict] = []

    def report(self, row: dict) -> None:
        """After each epoch: its mean loss and speed, and samples."""
        self.rows.append(row)
        if row["step"] % self.epoch:
            return
        rows = self.rows[-self.epoch :]
        tokens = sum(row["tokens"] for row in rows)
        loss = sum(row["tokens"] * row["loss"] for row in rows) / tokens
        timed = [row for row in rows if row["timed"]] or rows
        rate = sum(row["tokens"] for row in timed) / sum(row["step_s"] for row in timed)
        counted = self.config.steps is None and self.config.budget_seconds is None and self.config.budget_tokens is None
        epochs = f"/{self.config.epochs}" if counted else ""
        number = row["step"] // self.epoch
        print(f"epoch {number}{epochs}: mean loss {loss:.4f}, {tokens:,} tokens, {rate:,.0f} tokens/s")
        self.draw_samples()

    def draw_samples(self) -> list[dict]:
        return draw_samples(self.model, self.text.tokenizer, self.sample, self.generator)

    def checkpoint(self) -> Path | None:
        """The file that the training goes on from with --resume; without, an old one makes way for a new training."""
        if self.output.output_dir is None:
            return None
        path = self.output.output_dir / f"{self.name}.checkpoint.pt"
        if self.output.resume and path.exists():
            print(f"goes on from {path}")
        elif not self.rank:
            path.unlink(missing_ok=True)
        if distributed.is_initialized():
            distributed.barrier()  # nobody looks for the checkpoint before that
        return path

    def run(self) -> None:
        """Train, print, save and record."""
        size, blank = count_parameters(self.model), self.text.vocab_size
        steps = f"{self.epoch} steps an epoch; ln V = {math.log(blank):.4f}"
        print(f"\n{self.name}: {size['parameters']:,} parameters, {steps}")
        config = dataclasses.replace(self.config, max_steps_per_epoch=self.epoch)
        folder, frames = self.output.output_dir, []
        options = {"checkpoint": self.checkpoint(), "log": folder / f"{self.name}.csv" if folder else None}
        if self.config.validate_every and self.text.validation:
            few = make_batches(self.text.validation[:200], 16, blank=blank, shuffle=False, similar_lengths=True)
            options["validation"] = few
        options |= {"on_step": self.report, "progress": sys.stderr.isatty(), "run": self.output.record or "pico-llm"}

        def work() -> None:
            frames.append(train(self.model, config=config, name=self.label, **self.data, **options))

        peak = peak_memory(work, self.device)
        if not self.rank:  # what follows is the first process's
            self.finish(frames[0], size | {"vocab_size": blank, "peak_mb": peak / 1e6})

    def finish(self, steps: pd.DataFrame, row: dict) -> None:
        """Samples of an epoch that was left unfinished, weights, validation, and the rows of the record."""
        made, samples, positions = int(steps["step"].iloc[-1]), [], pd.DataFrame()
        if self.config.budget_seconds:
            print(f"{made} steps, {steps['tokens'].sum():,} tokens in {steps['step_s'].sum():.1f} s")
        if made % self.epoch or self.output.record:
            samples = self.draw_samples()
        if folder := self.output.output_dir:
            save_model(self.model, str(folder / f"{self.name}.safetensors"))
            print(f"saved {self.name}.csv and {self.name}.safetensors in {folder}")
        if self.text.validation:
            measured, positions = measure(self.model, self.text)
            row |= measured
            nats, order = measured["validation_loss"], measured["kneser_ney_order"]
            print(
                f"validation: {nats:.4f} nats a token, perplexity {measured['perplexity']:.2f}, "
                f"{measured['bits_per_byte']:.4f} bits a byte; Kneser-Ney of order {order} "
                f"{measured['kneser_ney_loss']:.4f}, mixed {measured['mixed_loss']:.4f}"
            )
        if self.output.record:
            row = self.columns | row | describe_machine(self.device) | {"data_hash": self.text.data_hash}
            row["stories"] = Path(row["stories"]).name
            labels = {"run": self.output.record, "model": self.label, "seed": self.config.seed}
            tables = {"summary": summarise(steps).assign(**row), "positions": positions}
            add_tables(self.output.record, labels, steps=steps, samples=pd.DataFrame(samples), **tables)


def check_options(models: ModelConfig, sample: SampleConfig, output: OutputConfig) -> None:
    """ValueError for options that do not go together."""
    if output.resume and not output.output_dir:
        raise ValueError("--resume needs --output_dir, the folder that holds the checkpoints")
    if output.label and len(models.models) > 1:
        raise ValueError("--label names one model; give one of --models at a time")
    if sample.stop == "":
        raise ValueError("argument --stop: it is empty; expected the text that a sample ends before, or no --stop")
    if not sample.prompt:
        raise ValueError("argument --prompt: it is empty; the models predict from at least one token")


def run(args: argparse.Namespace) -> None:
    """Read the text and train each model in turn. ValueError, TypeError, OSError or RuntimeError say what is wrong."""
    models, sample, machine, output = (
        read_config(each, args) for each in (ModelConfig, SampleConfig, MachineConfig, OutputConfig)
    )
    check_options(models, sample, output)
    if output.output_dir:
        output.output_dir.mkdir(parents=True, exist_ok=True)
    device = set_up(args.seed, device=machine.device_id, large_pages=machine.large_pages)
    rank = join_processes(device)
    fast.keep_memory(machine.keep_memory)
    fast.use_onednn_linear(machine.onednn_linear)
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (the first process speaks for all)
    several = f", {distributed.get_world_size()} processes" if distributed.is_initialized() else ""
    print(f"device {device}{several}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    text = read_text(read_config(TextConfig, args), models.kgram_k, progress=sys.stderr.isatty())
    print("\n".join(text.notes))
    text.tokenizer.encode(sample.prompt, allowed_special="all")  # an unknown word is an error now, not after training
    for name in models.models:
        Experiment(name, text, args, device, rank).run()


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # samples may hold bytes that a terminal cannot show
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
            run(args)
    except (ValueError, TypeError, OSError, RuntimeError) as error:  # RuntimeError: memory, among others
        parser.error((str(error) or type(error).__name__).splitlines()[0])
    except KeyboardInterrupt:
        parser.exit(130, "stopped\n")
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    main()
