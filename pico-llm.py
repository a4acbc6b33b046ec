"""Train small language models on sequences, stories or both, and print what they write.

python3 pico-llm.py --tinystories_weight 0.0 --input_files 3seqs.txt --block_size 32 --kgram_k 2
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_model

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
        help="builtin, small, hub (TinyStories through datasets), or a text file with <|endoftext|> between stories; "
        "the first 2,000, without those kept for validation (default: %(default)s)",
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
    training.add_argument("--max_steps_per_epoch", type=count, metavar="N", help="cut each epoch short (default: no)")
    training.add_argument(
        "--batch_size", type=count, default=32, metavar="B", help="sequences a step (default: %(default)s)"
    )
    training.add_argument(
        "--learning_rate",
        type=number(float, 0, low_included=False),
        default=1e-3,
        metavar="LR",
        help="step size of AdamW (default: %(default)s)",
    )
    training.add_argument(
        "--schedule",
        choices=["constant", "cosine"],
        default="constant",
        help="cosine: 3 %% of the training in warm-up, then down to a tenth of --learning_rate (default: %(default)s)",
    )
    training.add_argument("--bfloat16", action="store_true", help="compute matrix products in bfloat16")
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
        "--resume", action="store_true", help="go on from the checkpoints in --output_dir, where there are any"
    )
    return parser


def read_data(args: argparse.Namespace, tokenizer) -> tuple[list, list[float] | None]:
    """Sequences and, where files and stories are mixed, the weight of each; says what was read."""
    weight = args.tinystories_weight if args.input_files else 1.0
    if not args.input_files and not args.tinystories_weight:
        raise ValueError("--tinystories_weight 0 leaves no text; name --input_files, or give a weight above 0")
    if args.input_files and weight == 1:
        warnings.warn("--tinystories_weight is 1: no line of --input_files is used", stacklevel=2)
    sequences, weights = [], []
    for share, name in ((1 - weight, "files"), (weight, "stories")):
        if not share:
            continue
        if name == "files":
            found = helpers.read_sequences(args.input_files, tokenizer, args.block_size)
        else:
            found = helpers.encode_texts(helpers.load_stories(args.stories), tokenizer, args.block_size)
        distinct = len({tuple(sequence.tolist()) for sequence in found})
        print(f"{name}: {len(found)} sequences, {distinct} distinct, up to {args.block_size} tokens; share {share:g}")
        sequences += found
        weights += [share / len(found)] * len(found)
    return sequences, weights if 0 < weight < 1 else None


def build_model(name: str, args: argparse.Namespace) -> helpers.SequenceModel:
    hidden_size = args.hidden_size or args.embed_size
    if name == "lstm":
        return helpers.LSTMSeqModel(helpers.VOCAB_SIZE, args.embed_size, hidden_size)
    if name == "transformer":
        # learned positions must reach as far as training and samples do; a prompt of 1,000 tokens more is allowed for
        longest = args.block_size + args.max_new_tokens + 1000
        options = {"norm": args.norm, "positions": args.positions, "max_length": longest}
        return helpers.TransformerModel(helpers.VOCAB_SIZE, args.embed_size, args.n_heads, args.n_blocks, **options)
    net = helpers.EmbeddingMLP(
        helpers.VOCAB_SIZE, args.kgram_k, args.embed_size, hidden_size, args.num_inner_mlp_layers
    )
    return helpers.KGramMLPSeqModel(
        net, vocab_size=helpers.VOCAB_SIZE, k=args.kgram_k, chunk_size=args.kgram_chunk_size
    )


def print_samples(model, tokenizer, args: argparse.Namespace, generator: torch.Generator) -> None:
    """A greedy sample and one for each --top_p; below each its annotation, where that is asked for."""
    draw = {"top_k": args.top_k, "temperature": args.temperature, "generator": generator}
    settings = {"greedy": {}} | {f"p = {p}": {"top_p": p, **draw} for p in args.top_p}
    for label, setting in settings.items():
        new: list[int] = []
        options = {"stop": args.stop, "on_token": lambda token, _, new=new: new.append(token), **setting}
        text = helpers.generate(model, tokenizer, args.prompt, args.max_new_tokens, **options)
        print(f"  {label:8s} | {text!r}")
        if args.monosemantic_enabled:
            while len(args.prompt + tokenizer.decode(new)) > len(text):  # tokens of the stop text
                new.pop()
            annotated = args.prompt + helpers.annotate(model, tokenizer, new, table=args.monosemantic_enabled)
            print(f"  {'':8s} | {annotated}".replace("\n", "\\n"))


def train_model(name: str, batches, tokenizer, args: argparse.Namespace, device: torch.device) -> None:
    """Train one model, printing each epoch's mean loss and samples; save it where --output_dir says."""
    torch.manual_seed(args.seed)
    model = build_model(name, args).to(device)
    steps = min(len(batches), args.max_steps_per_epoch or len(batches))
    size = helpers.count_parameters(model)["parameters"]
    print(f"\n{name}: {size:,} parameters, {steps} steps an epoch; ln V = {math.log(model.vocab_size):.4f}")
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
        print_samples(model, tokenizer, args, generator)

    checkpoint = args.output_dir / f"{name}.checkpoint.pt" if args.output_dir else None
    if checkpoint and checkpoint.exists():
        if args.resume:
            print(f"goes on from {checkpoint}")
        else:
            checkpoint.unlink()  # a new training, which writes its own
    frame = helpers.train(
        model,
        batches,
        name=name,
        steps=None if args.budget_seconds else args.epochs * steps,
        budget_seconds=args.budget_seconds,
        max_steps_per_epoch=steps,
        learning_rate=args.learning_rate,
        schedule=args.schedule,
        warm_up_share=0.03 if args.schedule == "cosine" else 0.0,
        bfloat16=args.bfloat16,
        checkpoint=checkpoint,
        seed=args.seed,
        run="pico-llm",
        on_step=report,
        progress=sys.stderr.isatty(),
    )
    if args.budget_seconds:
        print(f"{len(frame)} steps, {frame['tokens'].sum():,} tokens in {frame['step_s'].sum():.1f} s")
        if len(frame) % steps:  # an epoch was left unfinished, and with it its samples
            print_samples(model, tokenizer, args, generator)
    if args.output_dir:
        frame.to_csv(args.output_dir / f"{name}.csv", index=False)
        save_model(model, str(args.output_dir / f"{name}.safetensors"))
        print(f"saved {name}.csv and {name}.safetensors in {args.output_dir}")


def run(args: argparse.Namespace) -> None:
    """Read the text and train each model in turn. ValueError, TypeError, OSError or RuntimeError say what is wrong."""
    if args.output_dir:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    elif args.resume:
        raise ValueError("--resume needs --output_dir, the folder that holds the checkpoints")
    device = helpers.set_up(args.seed, device=args.device_id)
    tokenizer = helpers.load_tokenizer()
    if not tokenizer.encode(args.prompt, allowed_special="all"):
        raise ValueError("argument --prompt: it is empty; the models predict from at least one token")
    if args.stop == "":
        raise ValueError("argument --stop: it is empty; expected the text that a sample ends before, or no --stop")
    print(f"device {device}, {torch.get_num_threads()} threads, torch {importlib.metadata.version('torch')}")
    sequences, weights = read_data(args, tokenizer)
    for name in args.models:
        batches = helpers.make_batches(sequences, args.batch_size, seed=args.seed, weights=weights)
        train_model(name, batches, tokenizer, args, device)


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


if __name__ == "__main__":
    main()
