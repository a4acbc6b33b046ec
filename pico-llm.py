"""Train small language models on sequences, stories or both, and print what they write.

python3 pico-llm.py --tinystories_weight 0.0 --input_files 3seqs.txt --block_size 32 --kgram_k 2
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import itertools
import math
import os
import sys
import warnings
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_model
from torch import distributed

import helpers


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line, exit code 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def number(kind: type, low: float, high: float = math.inf, low_included: bool = True):
    """An argparse type: a number of `kind` from `low` to `high`."""

    def parse(text: str):
        value = kind(text)
        if not (low <= value <= high) or (value == low and not low_included) or not math.isfinite(value):
            start = "" if low_included else "above "
            end = "" if high == math.inf else f" to {high:,}"
            raise argparse.ArgumentTypeError(f"{text} is out of range; expected {start}{low}{end or ' or more'}")
        return value

    parse.__name__ = {"int": "whole number", "float": "number"}[kind.__name__]
    return parse


def build_parser() -> Parser:
    """All options, their ranges and defaults."""
    count, size = number(int, 1, 10**9), number(int, 1, 10**6)
    parser = Parser(
        prog="pico-llm.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = parser.add_argument_group("text")
    text.add_argument(
        "--input_files", nargs="*", default=[], metavar="FILE", help="one sequence a line; also looked up in data/"
    )
    text.add_argument(
        "--tinystories_weight",
        type=number(float, 0, 1),
        default=0.5,
        metavar="W",
        help="chance that a training sequence is a story, not a line of a file; without files all are stories "
        "(default: %(default)s)",
    )
    text.add_argument(
        "--stories",
        default="builtin",
        metavar="SOURCE",
        help="builtin, small, hub (TinyStories through datasets), a text file with <|endoftext|> between stories, of "
        "which one in ten is for validation, or a folder with train.txt and valid.txt (default: %(default)s)",
    )
    text.add_argument(
        "--max_stories", type=count, default=2000, metavar="N", help="stories to train on (default: %(default)s)"
    )
    text.add_argument(
        "--validation_stories",
        type=number(int, 0, 10**9),
        default=0,
        metavar="N",
        help="stories kept for validation to measure the loss on, beside Kneser-Ney counts (default: %(default)s)",
    )
    text.add_argument(
        "--compact",
        action="store_true",
        help="a vocabulary of only the tokens that occur in training; others are no targets",
    )
    text.add_argument(
        "--block_size",
        type=number(int, 2, 10**6),
        default=128,
        metavar="T",
        help="tokens of a sequence, from its start (default: %(default)s)",
    )

    models = parser.add_argument_group("models")
    models.add_argument(
        "--models",
        nargs="+",
        choices=["lstm", "kgram", "transformer"],
        default=["lstm", "kgram"],
        help="which to train, one after the other (default: lstm kgram)",
    )
    models.add_argument(
        "--embed_size",
        type=size,
        default=64,
        metavar="E",
        help="width of an embedding, and of the Transformer throughout (default: %(default)s)",
    )
    models.add_argument(
        "--hidden_size", type=size, metavar="H", help="width of the k-gram's and the LSTM's hidden layers (default: E)"
    )
    models.add_argument(
        "--kgram_k", type=number(int, 1, 1000), default=3, metavar="K", help="tokens of context (default: %(default)s)"
    )
    models.add_argument(
        "--kgram_chunk_size", type=count, metavar="N", help="contexts that go through the net at once (default: all)"
    )
    models.add_argument(
        "--num_inner_mlp_layers",
        type=number(int, 0, 1000),
        default=1,
        metavar="L",
        help="inner layers of the k-gram's net (default: %(default)s)",
    )
    models.add_argument(
        "--n_heads",
        type=number(int, 1, 1000),
        default=4,
        metavar="N",
        help="attention heads of the Transformer; E must be a multiple of 2 N (default: %(default)s)",
    )
    models.add_argument(
        "--n_blocks",
        type=number(int, 1, 1000),
        default=2,
        metavar="N",
        help="blocks of the Transformer (default: %(default)s)",
    )
    models.add_argument(
        "--norm",
        choices=["pre", "post"],
        default="pre",
        help="RMSNorm before or after each part (default: %(default)s)",
    )
    models.add_argument(
        "--positions",
        choices=["rotary", "learned", "none"],
        default="rotary",
        help="how the Transformer knows positions (default: %(default)s)",
    )
    models.add_argument(
        "--head",
        choices=["tied", "free"],
        help="whether the head shares the embedding's table (default: tied for the Transformer, else free)",
    )
    models.add_argument(
        "--embedding_from",
        type=Path,
        metavar="FILE",
        help="start from the embedding table in this .safetensors file of another model (default: no)",
    )

    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs", type=count, default=3, metavar="N", help="passes over the text (default: %(default)s)"
    )
    training.add_argument(
        "--budget_seconds",
        type=number(float, 0, low_included=False),
        metavar="S",
        help="train each model for S seconds of steps instead of --epochs (default: no)",
    )
    training.add_argument(
        "--corpus_contexts",
        nargs="?",
        type=number(float, 0, 1),
        const=0.5,
        metavar="A",
        help="train the k-gram on the distinct contexts of the whole text, --batch_size a step, drawn with probability "
        "~ count^A (A: 0.5); an epoch draws as many as there are",
    )
    training.add_argument(
        "--blanks",
        type=number(float, 0, 1),
        default=0.0,
        metavar="S",
        help="share of the --corpus_contexts that show only their newest tokens, against overfitting "
        "(default: %(default)s)",
    )
    training.add_argument(
        "--dropout",
        type=number(float, 0, 0.99),
        default=0.0,
        metavar="S",
        help="share of the last hidden state that training drops (default: %(default)s)",
    )
    training.add_argument("--max_steps_per_epoch", type=count, metavar="N", help="cut each epoch short (default: no)")
    training.add_argument(
        "--batch_size", type=count, default=32, metavar="B", help="sequences a step (default: %(default)s)"
    )
    training.add_argument(
        "--similar_lengths", action="store_true", help="batches of sequences of about the same length: less padding"
    )
    training.add_argument(
        "--optimizer",
        choices=["adamw", "muon"],
        default="adamw",
        help="AdamW, or Muon for the matrices between embedding and head (default: %(default)s)",
    )
    training.add_argument(
        "--learning_rate",
        type=number(float, 0, low_included=False),
        default=1e-3,
        metavar="LR",
        help="step size of the optimizer (default: %(default)s)",
    )
    training.add_argument(
        "--schedule",
        choices=["constant", "cosine"],
        default="constant",
        help="cosine: 3 %% of the training in warm-up, then down to a tenth of --learning_rate (default: %(default)s)",
    )
    training.add_argument(
        "--weight_decay", type=number(float, 0), default=0.0, metavar="W", help="of matrices (default: %(default)s)"
    )
    training.add_argument(
        "--clip", type=number(float, 0, low_included=False), metavar="C", help="largest gradient norm (default: no)"
    )
    training.add_argument("--bfloat16", action="store_true", help="compute matrix products in bfloat16")
    training.add_argument(
        "--compile",
        action="store_true",
        help="compile the k-gram's net and the Transformer's blocks (torch.compile); the first steps then take longer",
    )
    training.add_argument(
        "--seed",
        type=number(int, 0, 2**63 - 1),
        default=0,
        metavar="S",
        help="of first weights, data order and samples (default: %(default)s)",
    )
    training.add_argument(
        "--device_id", default="auto", metavar="DEVICE", help="cpu, cuda:0, mps or auto (default: %(default)s)"
    )

    samples = parser.add_argument_group("samples")
    samples.add_argument(
        "--prompt", default="Once upon a", metavar="TEXT", help="what samples go on from (default: %(default)s)"
    )
    samples.add_argument(
        "--samples", type=count, default=1, metavar="N", help="samples for each --top_p (default: %(default)s)"
    )
    samples.add_argument(
        "--max_new_tokens",
        type=number(int, 0, 10**6),
        default=20,
        metavar="N",
        help="new tokens of a sample (default: %(default)s)",
    )
    samples.add_argument(
        "--top_p",
        nargs="+",
        type=number(float, 0, 1, low_included=False),
        default=[0.95, 1.0],
        metavar="P",
        help="one sample for each nucleus of mass P, after a greedy one (default: 0.95 1.0)",
    )
    samples.add_argument("--top_k", type=size, metavar="K", help="draw from the K most probable tokens (default: all)")
    samples.add_argument(
        "--temperature",
        type=number(float, 0, low_included=False),
        default=1.0,
        metavar="T",
        help="divides the logits before a draw (default: %(default)s)",
    )
    samples.add_argument("--stop", metavar="TEXT", help="end a sample before this text (default: no)")
    samples.add_argument(
        "--monosemantic_enabled",
        nargs="?",
        const="embedding",
        choices=["embedding", "head"],
        help="show each new token of a sample with its nearest neighbours in the embedding, or in the head's table",
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_dir",
        type=Path,
        metavar="DIR",
        help="save losses (.csv), weights (.safetensors) and checkpoints here (default: no)",
    )
    output.add_argument(
        "--log_every", type=count, default=1, metavar="N", help="steps of a row of losses (default: %(default)s)"
    )
    output.add_argument(
        "--validate_every",
        type=count,
        metavar="N",
        help="steps between validations on 200 of the --validation_stories; the best weights are kept (default: no)",
    )
    output.add_argument(
        "--record",
        metavar="NAME",
        help="add losses, run rows, losses by position and samples to NAME*.csv in data/runs (default: no)",
    )
    output.add_argument("--label", metavar="TEXT", help="the model's name in records (default: that of --models)")
    output.add_argument(
        "--resume", action="store_true", help="go on from the checkpoints in --output_dir, where there are any"
    )
    return parser


class Text:
    """What is trained on, what is kept for validation, and the tokenizer of both."""

    def __init__(self, sequences, weights, validation, tokenizer, vocab_size: int, k: int):
        self.sequences, self.weights, self.validation = sequences, weights, validation
        self.tokenizer, self.vocab_size, self.k = tokenizer, vocab_size, k

    @functools.cached_property
    def kneser_ney(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Modified Kneser-Ney on validation: each target's probability, and how often its context was seen."""
        windows = helpers.target_windows(self.validation, self.k, self.vocab_size)
        counts = helpers.KneserNey(self.sequences, self.vocab_size, self.k + 1)
        return counts.probability(windows[:, :-1], windows[:, -1]), counts.times_seen(windows[:, :-1])

    @functools.cached_property
    def digest(self) -> str:
        """12 hex digits that name the training tokens in a record."""
        return hashlib.sha256(torch.cat(self.sequences).numpy().tobytes()).hexdigest()[:12]


def read_data(args: argparse.Namespace) -> Text:
    """Sequences, the weight of each where files and stories are mixed, and validation stories; says what was read."""
    tokenizer, vocab_size = helpers.load_tokenizer(), helpers.VOCAB_SIZE
    weight = args.tinystories_weight if args.input_files else 1.0
    if not args.input_files and not args.tinystories_weight:
        raise ValueError("--tinystories_weight 0 leaves no text; name --input_files, or give a weight above 0")
    if args.input_files and weight == 1:
        warnings.warn("--tinystories_weight is 1: no line of --input_files is used", stacklevel=2)
    if args.validation_stories and not weight:
        raise ValueError("--validation_stories needs stories to train on; give --tinystories_weight above 0")

    def stories(split: str, limit: int) -> list[torch.Tensor]:
        texts = helpers.load_stories(args.stories, split, limit)
        cache = helpers.cache_folder() if len(texts) >= 5000 else None  # fewer take less than a second
        return helpers.encode_texts(texts, tokenizer, args.block_size, cache=cache, progress=sys.stderr.isatty())

    sequences, weights = [], []
    for share, name in ((1 - weight, "files"), (weight, "stories")):
        if not share:
            continue
        if name == "files":
            found = helpers.read_sequences(args.input_files, tokenizer, args.block_size)
        else:
            found = stories("train", args.max_stories)
        distinct = len({tuple(sequence.tolist()) for sequence in found})
        print(f"{name}: {len(found)} sequences, {distinct} distinct, up to {args.block_size} tokens; share {share:g}")
        sequences += found
        weights += [share / len(found)] * len(found)
    validation = stories("validation", args.validation_stories) if args.validation_stories else []
    if validation:
        print(f"validation: {len(validation)} stories")
    if args.compact:
        sequences, ids = helpers.compact_vocabulary(sequences)
        tokenizer, vocab_size = helpers.CompactTokenizer(tokenizer, ids), len(ids)
        validation = helpers.renumber(validation, ids)
        unknown = sum(int((sequence == vocab_size).sum()) for sequence in validation)
        print(f"compact vocabulary: {vocab_size} tokens; {unknown} validation tokens lie outside it and do not count")
    mixed = weights if 0 < weight < 1 else None
    return Text(sequences, mixed, validation, tokenizer, vocab_size, args.kgram_k)


def build_model(name: str, args: argparse.Namespace, vocab_size: int) -> helpers.SequenceModel:
    hidden_size = args.hidden_size or args.embed_size
    tied = args.head == "tied" or (args.head is None and name == "transformer")
    if name == "lstm":
        model = helpers.LSTMSeqModel(vocab_size, args.embed_size, hidden_size, tied=tied)
    elif name == "transformer":
        # learned positions must reach as far as training and samples do; a prompt of 1,000 tokens more is allowed for
        longest = args.block_size + args.max_new_tokens + 1000
        options = {"norm": args.norm, "positions": args.positions, "max_length": longest, "tied": tied}
        model = helpers.TransformerModel(vocab_size, args.embed_size, args.n_heads, args.n_blocks, **options)
    else:
        k, chunk_size = args.kgram_k, args.kgram_chunk_size
        net = helpers.EmbeddingMLP(vocab_size, k, args.embed_size, hidden_size, args.num_inner_mlp_layers)
        model = helpers.KGramMLPSeqModel(net, vocab_size=vocab_size, k=k, chunk_size=chunk_size, tied=tied)
    if args.embedding_from:
        table = load_file(args.embedding_from)
        table = next((value for key, value in table.items() if key.endswith("embedding.weight")), torch.empty(0))
        own = next(module for module in model.modules() if isinstance(module, helpers.TokenEmbedding))
        if table.shape != own.weight.shape:
            raise ValueError(
                f"the table in {args.embedding_from} is {tuple(table.shape)}; the {name} needs "
                f"{tuple(own.weight.shape)}: give --embed_size and the text that it was trained with"
            )
        own.weight.data.copy_(table)
    if args.compile:
        parts = {"kgram": lambda: [model.net], "transformer": lambda: model.blocks, "lstm": list}[name]()
        for part in parts:
            part.compile(dynamic=True)  # the number of distinct contexts changes from batch to batch
        if not parts:
            print(f"{name}: --compile leaves it as it is; its layer is one fused kernel already")
    return model


def draw_samples(model, tokenizer, args: argparse.Namespace, generator: torch.Generator) -> list[dict]:
    """Print a greedy sample and those of each --top_p; below each its annotation, where that is asked for."""
    draw = {"top_k": args.top_k, "temperature": args.temperature, "generator": generator}
    settings = {"greedy": {}} | {f"p = {p}": {"top_p": p, **draw} for p in args.top_p}
    drawn = []
    for label, setting in settings.items():
        for _ in range(args.samples if setting else 1):
            new: list[int] = []
            options = {"stop": args.stop, "on_token": lambda token, _, new=new: new.append(token), **setting}
            text = helpers.generate(model, tokenizer, args.prompt, args.max_new_tokens, **options)
            drawn.append({"setting": label, "text": text})
            print(f"  {label:8s} | {text!r}")
            if args.monosemantic_enabled:
                while len(args.prompt + tokenizer.decode(new)) > len(text):  # tokens of the stop text
                    new.pop()
                annotated = args.prompt + helpers.annotate(model, tokenizer, new, table=args.monosemantic_enabled)
                print(f"  {'':8s} | {annotated}".replace("\n", "\\n"))
    return drawn


def make_training(name: str, text: Text, args: argparse.Namespace) -> dict:
    """The batches of a model and the loss on them."""
    if name == "kgram" and args.corpus_contexts is not None:
        if text.weights:
            raise ValueError("--corpus_contexts takes each sequence once; it cannot mix files and stories by weight")
        contexts = helpers.CorpusContexts(text.sequences, args.kgram_k, text.vocab_size)
        print(f"{len(contexts):,} distinct contexts of {args.kgram_k} tokens among {int(contexts.total.sum()):,}")
        batches = contexts.batches(args.batch_size, power=args.corpus_contexts, blanks=args.blanks, seed=args.seed)
        return {"batches": batches, "loss_fn": helpers.context_loss}
    options = {"blank": text.vocab_size, "seed": args.seed, "weights": text.weights}
    options["similar_lengths"] = args.similar_lengths
    return {"batches": helpers.make_batches(text.sequences, args.batch_size, **options)}


def measure(model, text: Text) -> tuple[dict, pd.DataFrame]:
    """Validation loss of the model, of Kneser-Ney of k tokens and of both mixed; and by position."""
    nats = helpers.target_log_probabilities(model, text.validation)
    by_position = torch.nn.utils.rnn.pad_sequence(nats, padding_value=math.nan)  # (T, stories)
    nats = torch.cat(nats)
    net, (counted, seen) = nats[~nats.isnan()].double().exp(), text.kneser_ney
    half = torch.arange(len(net)) < len(net) // 2
    loss = -net.log().mean().item()
    found = {"validation_loss": loss, "perplexity": math.exp(loss)}
    found["bits_per_byte"] = helpers.bits_per_byte(loss, text.validation, text.tokenizer)
    found |= {"kneser_ney_order": text.k + 1, "kneser_ney_loss": -counted.log().mean().item()}
    found["mixed_loss"], found["mix_weight"] = helpers.mixed_loss(net, counted, half, seen)
    edges = [*range(8), *(2**n for n in range(3, 20))]
    rows = []
    for begin, end in itertools.pairwise([*(edge for edge in edges if edge < len(by_position)), len(by_position)]):
        losses = -by_position[begin:end]
        losses = losses[~losses.isnan()]
        rows.append({"from": begin + 1, "to": end, "targets": len(losses), "loss": losses.mean().item()})
    return found, pd.DataFrame(rows)


def train_model(name: str, text: Text, args: argparse.Namespace, device: torch.device, rank: int) -> None:
    """Train one model, printing each epoch's mean loss and samples; save and record it where that is asked for."""
    torch.manual_seed(args.seed)
    model = build_model(name, args, text.vocab_size).to(device)
    model.dropout.p = args.dropout
    training = make_training(name, text, args)
    steps = min(len(training["batches"]), args.max_steps_per_epoch or len(training["batches"]))
    size = helpers.count_parameters(model)
    print(
        f"\n{name}: {size['parameters']:,} parameters, {steps} steps an epoch; ln V = {math.log(model.vocab_size):.4f}"
    )
    rows: list[dict] = []
    generator = torch.Generator(device).manual_seed(args.seed)  # of the samples alone

    def report(row: dict) -> None:
        rows.append(row)
        if row["step"] % steps:
            return
        epoch = rows[-steps:]
        tokens = sum(row["tokens"] for row in epoch)
        loss = sum(row["tokens"] * row["loss"] for row in epoch) / tokens
        timed = [row for row in epoch if not row["warm_up"]] or epoch
        rate = sum(row["tokens"] for row in timed) / sum(row["step_s"] for row in timed)
        epochs = f"/{args.epochs}" if not args.budget_seconds else ""
        print(f"epoch {row['step'] // steps}{epochs}: mean loss {loss:.4f}, {tokens:,} tokens, {rate:,.0f} tokens/s")
        draw_samples(model, text.tokenizer, args, generator)

    checkpoint = args.output_dir / f"{name}.checkpoint.pt" if args.output_dir else None
    if checkpoint and args.resume and checkpoint.exists():
        print(f"goes on from {checkpoint}")
    elif checkpoint and not rank:
        checkpoint.unlink(missing_ok=True)  # a new training, which writes its own
    if distributed.is_initialized():
        distributed.barrier()  # nobody looks for the checkpoint before that
    if args.validate_every and text.validation:
        few = helpers.make_batches(
            text.validation[:200], 16, blank=text.vocab_size, shuffle=False, similar_lengths=True
        )
        training |= {"validation": few, "validate_every": args.validate_every}
    frame = pd.DataFrame()

    def work() -> None:
        nonlocal frame
        frame = helpers.train(
            model,
            **training,
            name=args.label or name,
            steps=None if args.budget_seconds else args.epochs * steps,
            budget_seconds=args.budget_seconds,
            max_steps_per_epoch=steps,
            optimizer=args.optimizer,
            learning_rate=args.learning_rate,
            schedule=args.schedule,
            warm_up_share=0.03 if args.schedule == "cosine" else 0.0,
            weight_decay=args.weight_decay,
            clip=args.clip,
            bfloat16=args.bfloat16,
            checkpoint=checkpoint,
            log=args.output_dir / f"{name}.csv" if args.output_dir else None,
            log_every=args.log_every,
            seed=args.seed,
            run=args.record or "pico-llm",
            on_step=report,
            progress=sys.stderr.isatty(),
        )

    peak = helpers.peak_memory(work, device)
    if rank:
        return  # what follows is the first process's
    made = int(frame["step"].iloc[-1])
    drawn = []
    if args.budget_seconds:
        print(f"{made} steps, {frame['tokens'].sum():,} tokens in {frame['step_s'].sum():.1f} s")
    if made % steps or args.record:  # an epoch was left unfinished, and with it its samples
        drawn = draw_samples(model, text.tokenizer, args, generator)
    if args.output_dir:
        save_model(model, str(args.output_dir / f"{name}.safetensors"))
        print(f"saved {name}.csv and {name}.safetensors in {args.output_dir}")
    found, positions = measure(model, text) if text.validation else ({}, pd.DataFrame())
    if found:
        print(
            f"validation: {found['validation_loss']:.4f} nats a token, perplexity {found['perplexity']:.2f}, "
            f"{found['bits_per_byte']:.4f} bits a byte; Kneser-Ney of order {args.kgram_k + 1} "
            f"{found['kneser_ney_loss']:.4f}, mixed {found['mixed_loss']:.4f}"
        )
    if args.record:
        shown = ("embed_size", "hidden_size", "kgram_k", "num_inner_mlp_layers", "n_heads", "n_blocks", "batch_size")
        shown += (
            "block_size",
            "optimizer",
            "learning_rate",
            "schedule",
            "corpus_contexts",
            "blanks",
            "dropout",
            "weight_decay",
            "bfloat16",
            "stories",
        )
        row = helpers.summarise(frame).assign(**size, kind=name, vocab_size=text.vocab_size, peak_memory=peak)
        row = row.assign(**{key: getattr(args, key) for key in shown}, **helpers.describe_machine(device), **found)
        key = {"run": args.record, "model": args.label or name, "seed": args.seed}
        row = row.assign(stories=Path(args.stories).name, data_hash=text.digest)
        tables = {"": frame, "_summary": row, "_positions": positions, "_samples": pd.DataFrame(drawn)}
        for ending, table in tables.items():
            if len(table):
                helpers.add_to_run(
                    table.assign(**key)[[*key, *table.columns.difference(key, sort=False)]], args.record + ending
                )


def run(args: argparse.Namespace) -> None:
    """Read the text and train each model in turn. ValueError, TypeError, OSError or RuntimeError say what is wrong."""
    if args.output_dir:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    elif args.resume:
        raise ValueError("--resume needs --output_dir, the folder that holds the checkpoints")
    if args.label and len(args.models) > 1:
        raise ValueError("--label names one model; give one of --models at a time")
    device = helpers.set_up(args.seed, device=args.device_id)
    rank = helpers.join_processes(device)
    helpers.keep_memory()
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (the first process speaks for all)
    if args.stop == "":
        raise ValueError("argument --stop: it is empty; expected the text that a sample ends before, or no --stop")
    if not args.prompt:
        raise ValueError("argument --prompt: it is empty; the models predict from at least one token")
    several = f", {distributed.get_world_size()} processes" if distributed.is_initialized() else ""
    print(f"device {device}{several}, {torch.get_num_threads()} threads, torch {importlib.metadata.version('torch')}")
    text = read_data(args)
    text.tokenizer.encode(args.prompt, allowed_special="all")  # an unknown word is an error now, not after training
    for name in args.models:
        train_model(name, text, args, device, rank)


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
