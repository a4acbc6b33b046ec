"""Train small language models on sequences, stories or both, and print what they write.

python3 pico-llm.py --tinystories_weight 0.0 --input_files 3seqs.txt --block_size 32 --kgram_k 2
"""

import argparse
import dataclasses
import math
import os
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from safetensors.torch import save_model
from torch import distributed

from helpers import SequenceModel, count_parameters, generate
from workbook import config as options
from workbook import fast
from workbook.batches import make_batches
from workbook.experiment import (
    Data,
    add_tables,
    build_model,
    choose_batches,
    compiled_parts,
    measure,
    net_class,
    read_text,
    start_from_frequencies,
)
from workbook.machine import describe_machine, join_processes, peak_memory, set_up
from workbook.neighbours import annotate
from workbook.records import output_folder, run_file, summarise
from workbook.training import settle_bfloat16, train


class Config(NamedTuple):
    """All options, as workbook/config.py has them."""

    text: options.TextConfig
    model: options.ModelConfig
    batch: options.BatchConfig
    training: options.TrainingConfig
    sample: options.SampleConfig
    machine: options.MachineConfig
    output: options.OutputConfig


def build_parser() -> argparse.ArgumentParser:
    """One group of options for each part of `Config`."""
    return options.make_parser(*Config.__annotations__.values(), prog="pico-llm.py", description=__doc__)


def read_options(args: argparse.Namespace) -> Config:
    """The parsed options by part. ValueError for some that do not go together."""
    config = Config(*(options.read_config(each, args) for each in Config.__annotations__.values()))
    if config.output.resume and not config.output.output_dir:
        raise ValueError("--resume needs --output_dir, the folder that holds the checkpoints")
    if config.output.label and len(config.model.models) > 1:
        raise ValueError("--label names one model; give one of --models at a time")
    net_class(config.model.kgram_net)  # an unknown one is an error now
    if config.output.record:
        run_file(output_folder("runs"), config.output.record)  # a name that leads out of the folder is an error
    if config.sample.stop == "":
        raise ValueError("argument --stop: it is empty; expected the text that a sample ends before, or no --stop")
    if config.sample.prompt == "":
        raise ValueError("argument --prompt: it is empty; the models predict from at least one token")
    return config


def draw_samples(
    model: SequenceModel, tokenizer, config: options.SampleConfig, generator: torch.Generator
) -> list[dict]:
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

    def __init__(self, name: str, data: Data, config: Config, device: torch.device, rank: int):
        self.name, self.data, self.config, self.device, self.rank = name, data, config, device, rank
        self.label, self.folder = config.output.label or name, config.output.output_dir
        torch.manual_seed(config.training.seed)
        longest = config.text.block_size + config.sample.max_new_tokens + 1000  # positions; a prompt of 1,000 tokens
        self.model = build_model(name, config.model, data.vocab_size, longest).to(device)
        if config.model.unigram_bias:
            start_from_frequencies(self.model, data.sequences)
        if config.model.compile and not compiled_parts(self.model):
            print(f"{name}: --compile leaves it as it is; its layer is one fused kernel already")
        self.batches = choose_batches(name, data, config.batch, config.training.seed)
        whole = len(self.batches["batches"])
        self.epoch = min(whole, config.training.max_steps_per_epoch or whole)
        self.generator = torch.Generator(device).manual_seed(config.training.seed)  # of the samples alone
        self.rows: list[dict] = []

    def report(self, row: dict) -> None:
        """After each epoch: its mean loss and speed, and samples."""
        self.rows.append(row)
        if row["step"] % self.epoch:
            return
        rows, config = self.rows[-self.epoch :], self.config.training
        tokens = sum(row["tokens"] for row in rows)
        loss = sum(row["tokens"] * row["loss"] for row in rows) / tokens
        timed = [row for row in rows if row["timed"]] or rows
        rate = sum(row["tokens"] for row in timed) / sum(row["step_s"] for row in timed)
        of = f"/{config.epochs}" if not (config.steps or config.budget_seconds or config.budget_tokens) else ""
        number = row["step"] // self.epoch
        print(f"epoch {number}{of}: mean loss {loss:.4f}, {tokens:,} tokens, {rate:,.0f} tokens/s")
        self.draw_samples()

    def draw_samples(self) -> list[dict]:
        return draw_samples(self.model, self.data.tokenizer, self.config.sample, self.generator)

    def checkpoint(self) -> Path | None:
        """The file that the training goes on from with --resume; without, an old one makes way for a new training."""
        if self.folder is None:
            return None
        path = self.folder / f"{self.name}.checkpoint.pt"
        if self.config.output.resume and path.exists():
            print(f"goes on from {path}")
        elif not self.rank:
            path.unlink(missing_ok=True)
        if distributed.is_initialized():
            distributed.barrier()  # nobody looks for the checkpoint before that
        return path

    def run(self) -> None:
        """Train, print, save and record."""
        size, vocab_size = count_parameters(self.model), self.data.vocab_size
        steps = f"{self.epoch} steps an epoch; ln V = {math.log(vocab_size):.4f}"
        print(f"\n{self.name}: {size['parameters']:,} parameters, {steps}")
        files = {"checkpoint": self.checkpoint(), "log": self.folder / f"{self.name}.csv" if self.folder else None}
        settled, taken = settle_bfloat16(
            self.config.training, self.model, **self.batches, checkpoint=files["checkpoint"]
        )
        if taken:
            each = ", ".join(f"{way} {1e3 * seconds:.0f} ms" for way, seconds in taken.items())
            print(f"bfloat16 auto: {settled.bfloat16}; forward and backward take {each}")
        self.config = self.config._replace(training=settled)
        config, frames = dataclasses.replace(settled, max_steps_per_epoch=self.epoch), []
        validation = None
        if config.validate_every and self.data.validation:
            few = {"blank": vocab_size, "shuffle": False, "similar_lengths": True}
            validation = make_batches(self.data.halves[0][:200], 16, **few)
        more = {"validation": validation, "on_step": self.report, "progress": sys.stderr.isatty()}
        labels = {"name": self.label, "run": self.config.output.record or "pico-llm"}

        def work() -> None:
            frames.append(train(self.model, config=config, **labels, **self.batches, **files, **more))

        peak = peak_memory(work, self.device)
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
            save_model(self.model, str(self.folder / f"{self.name}.safetensors"))
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
            tables = {"steps": steps, "summary": summarise(steps).assign(**row), "positions": positions}
            add_tables(name, labels, samples=pd.DataFrame(samples), **tables)


def run(args: argparse.Namespace) -> None:
    """Read the text and train each model in turn. ValueError, TypeError, OSError or RuntimeError say what is wrong."""
    config = read_options(args)
    machine = config.machine
    if config.output.output_dir:
        config.output.output_dir.mkdir(parents=True, exist_ok=True)
    device = set_up(config.training.seed, device=machine.device_id, large_pages=machine.large_pages)
    rank = join_processes(device)
    fast.keep_memory(machine.keep_memory)
    fast.use_onednn_linear(machine.onednn_linear)
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (the first process speaks for all)
    several = f", {distributed.get_world_size()} processes" if distributed.is_initialized() else ""
    print(f"device {device}{several}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    data = read_text(config.text, config.model.kgram_k, progress=sys.stderr.isatty())
    print("\n".join(data.notes))
    config = config._replace(sample=dataclasses.replace(config.sample, prompt=config.sample.prompt or data.opening))
    data.tokenizer.encode(config.sample.prompt, allowed_special="all")  # an unknown word is an error now, not later
    for name in config.model.models:
        Experiment(name, data, config, device, rank).run()


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
