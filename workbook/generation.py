"""What a model does when it writes and reads: its nucleus, exact and diverse texts, and milliseconds for a token."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd
import torch
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from scipy.stats import binomtest
from torch import Tensor

from helpers import SequenceModel, generate, sample_token, token_stream, top_p_filter
from workbook.config import SampleConfig
from workbook.counts import distinct_share, repeated_share
from workbook.machine import timed
from workbook.neighbours import annotate

Way = Callable[[SequenceModel, Tensor, object], Tensor]  # (model, text (T, 1), state) -> logits (1, V)


def draw_samples(model: SequenceModel, tokenizer, config: SampleConfig, generator: torch.Generator) -> list[dict]:
    """Print a greedy sample and those of each --top_p; below each its annotation, where that is asked for."""
    draw = {"top_k": config.top_k, "temperature": config.temperature, "generator": generator}
    settings: dict[str, dict] = {"greedy": {}} | {f"p = {p}": {"top_p": p, **draw} for p in config.top_p}
    prompt, rows = config.prompt or "", []
    for label in [label for label, setting in settings.items() for _ in range(config.samples if setting else 1)]:
        new: list[int] = []
        options = {"stop": config.stop, "on_token": lambda token, _, new=new: new.append(token), **settings[label]}
        options["repetition_penalty"] = config.repetition_penalty
        text = generate(model, tokenizer, prompt, config.max_new_tokens, **options)
        rows.append({"setting": label, "text": text})
        print(f"  {label:8s} | {text!r}")
        if config.monosemantic_enabled:
            while len(prompt + tokenizer.decode(new)) > len(text):  # tokens of the stop text
                new.pop()
            annotated = prompt + annotate(model, tokenizer, new, table=config.monosemantic_enabled)
            print(f"  {'':8s} | {annotated}".replace("\n", "\\n"))
    return rows


def mark_difference(text: str, other: str) -> str:
    """The text with a mark where it first differs from the other."""
    same = next((i for i, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), None)
    same = min(len(text), len(other)) if same is None else same
    return text[:same] + "▸" + text[same:]


@torch.no_grad()
def next_tokens(
    model: SequenceModel, tokenizer, prompt: str, top_p: float, temperature: float = 1.0, most: int = 12
) -> pd.DataFrame:
    """The most probable next tokens, their probability, and whether the nucleus of `top_p` keeps them."""
    tokens = torch.tensor(tokenizer.encode(prompt), device=model.device)[:, None]
    model.check_tokens(tokens)
    logits = model.prefill(tokens, model.start(1))[0][0] / temperature
    top, kept = logits.softmax(-1).topk(min(most, len(logits))), top_p_filter(logits, top_p).isfinite()
    rows = {"token": [repr(tokenizer.decode([i])) for i in top.indices.tolist()], "probability": top.values.tolist()}
    rows |= {"kept": kept[top.indices].tolist(), "nucleus": int(kept.sum()), "p": top_p, "temperature": temperature}
    return pd.DataFrame(rows | {"prompt": prompt})


@torch.no_grad()
def read_texts(model: SequenceModel, tokens: Tensor, top_p: float) -> pd.DataFrame:
    """Texts (T, B) as a model reads them: each target's probability, and whether and how much the nucleus lacks."""
    logits, targets = model(tokens[:-1]), tokens[1:]
    probabilities, inside = logits.softmax(-1), top_p_filter(logits, top_p).isfinite()
    real = targets != model.blank
    own = targets.where(real, 0)[..., None]
    columns = {"probability": probabilities.gather(-1, own)[..., 0], "outside": ~inside.gather(-1, own)[..., 0]}
    columns["mass outside"] = probabilities.where(~inside, 0).sum(-1)
    return pd.DataFrame({name: column[real].cpu() for name, column in columns.items()})


def continuations(
    model: SequenceModel,
    prompt: Tensor,
    lines: Iterable[Tensor],
    sides: Mapping[str, int],
    draws: int,
    seed: int,
    **how,
) -> dict:
    """How many of `draws` continuations of a prompt (1, 1) are lines of a text, and which token comes first.

    `sides`: the tokens that may; of the first, as of the exact lines, the share with its 95 % interval (Wilson 1927).
    `how`: top_p and temperature.
    """
    known, length = {tuple(line.tolist()) for line in lines}, len(next(iter(lines)))
    starts, generator = prompt.expand(-1, draws), torch.Generator().manual_seed(seed)
    stream = token_stream(model, starts, generator=generator, **how)
    told = torch.cat([starts, *(new[None] for new, _ in itertools.islice(stream, length - 1))]).t().tolist()
    counts = {side: sum(line[1] == token for line in told) for side, token in sides.items()}
    row: dict[str, float] = {"temperature": how["temperature"], "p": how["top_p"] or 0}  # 0: greedy
    first = next(iter(sides))
    for name, prefix, count in (
        ("exact", "exact_", sum(tuple(line) in known for line in told)),
        (first, "", counts[first]),
    ):
        low, high = binomtest(count, draws).proportion_ci(method="wilson")
        row |= {name: count / draws, f"{prefix}low": low, f"{prefix}high": high}
    return {side: count / draws for side, count in counts.items()} | row


def write_texts(
    model: SequenceModel, prompt: Sequence[int], count: int, end: int, top_p: float | None, length: int = 110, seed=0
) -> Tensor:
    """`count` texts that go on from the ids of a prompt for `length` tokens, (T, count); BLANK after the id `end`."""
    start = torch.tensor(prompt, device=model.device)[:, None].expand(-1, count)
    stream = token_stream(model, start, top_p, generator=torch.Generator().manual_seed(seed))
    tokens = torch.cat([start, *(new[None] for new, _ in itertools.islice(stream, length))])
    ended = (tokens == end).cumsum(0) - (tokens == end).long() > 0
    return tokens.masked_fill(ended, model.blank)


def self_bleu(texts: Sequence[Sequence]) -> float:
    """The mean BLEU-4 of each text against all others (Zhu et al. 2018): 1 where all are the same. NaN for one text."""
    smooth = SmoothingFunction().method1
    others = [[*texts[:i], *texts[i + 1 :]] for i in range(len(texts))]
    if len(texts) < 2:
        return math.nan
    scores = [sentence_bleu(rest, text, smoothing_function=smooth) for rest, text in zip(others, texts, strict=True)]
    return sum(scores) / len(scores)


@torch.no_grad()
def perplexity(judge: SequenceModel, tokens: Tensor, skip: int) -> float:
    """exp of the judge's mean nats a token of (T, B), the first `skip` of each column not counted."""
    log_p = judge(tokens[:-1]).log_softmax(-1)[skip - 1 :]
    targets = tokens[skip:]
    real = targets != judge.blank
    own = log_p.gather(-1, targets.where(real, 0)[..., None])[..., 0]
    return math.exp(-own[real].mean().item())


def quality(tokens: Tensor, judge: SequenceModel, prompt_length: int, end: int, group_size: int) -> list[dict]:
    """Texts (T, B), BLANK after their end, in groups: a row for each with its diversity, repetition and perplexity."""
    rows = []
    for group in tokens.split(group_size, dim=1):
        texts = [[token for token in column if token != judge.blank] for column in group.t().tolist()]
        row = {f"distinct-{n}": distinct_share(texts, n) for n in (1, 2, 3)}
        row |= {"repetition": repeated_share(texts), "self-BLEU": self_bleu(texts)}
        row |= {"ended": (group == end).any(0).float().mean().item(), "tokens": sum(map(len, texts)) / len(texts)}
        rows.append(row | {"perplexity": perplexity(judge, group, prompt_length)})
    return rows


def milliseconds(function: Callable, *inputs, device: torch.device) -> float:
    return 1e3 * timed(function, *inputs, device=device)[0]


@torch.no_grad()
def latency(
    models: Mapping[str, SequenceModel], ways: Mapping[str, Way], lengths: Iterable[int], rounds: int = 5
) -> pd.DataFrame:
    """Milliseconds for the logits of one more token after texts of several lengths, in turn: model, way, round, ms."""
    rows = []
    for length, number in itertools.product(lengths, range(rounds + 1)):
        for name, model in models.items():
            text = torch.randint(model.vocab_size, (length, 1), generator=torch.Generator().manual_seed(number))
            text = text.to(model.device)
            state = model.prefill(text[:-1], model.start(1))[1]
            cases: dict[str, tuple] = {way: (function, model, text, state) for way, function in ways.items()}
            cases["of that the head"] = (model.logits, torch.zeros(1, model.head.in_features, device=model.device))
            for way, case in cases.items():
                ms = milliseconds(*case, device=model.device)
                rows.append({"model": name, "way": way, "length": length, "round": number, "ms": ms})
    return pd.DataFrame(rows).query("round > 0")  # the first warms up


@torch.no_grad()
def write_timed(models: Mapping[str, SequenceModel], ways: Mapping[str, Way], length: int = 512) -> pd.DataFrame:
    """Milliseconds of each of `length` greedy tokens after a prompt as long, each way of one text: position, ms."""

    def draw(function: Way, *inputs) -> Tensor:
        return sample_token(function(*inputs))

    rows = []
    for name, model in models.items():
        text = torch.randint(model.vocab_size, (length, 1), generator=torch.Generator().manual_seed(0))
        text, device = text.to(model.device), model.device
        seconds, (_, state) = timed(model.prefill, text[:-1], model.start(1), device=device)
        rows.append({"model": name, "way": "the prompt", "position": 0, "ms": 1e3 * seconds})
        for position in range(length):
            for way, function in ways.items():
                ms = milliseconds(draw, function, model, text, state, device=device)
                rows.append({"model": name, "way": way, "position": position, "ms": ms})
            logits, state = model.step(text[-1], state)
            text = torch.cat([text, sample_token(logits)[None]])
    return pd.DataFrame(rows)


def filter_cost(vocab_size: int, device: torch.device, rounds: int = 30) -> pd.DataFrame:
    """Milliseconds of `top_p_filter` and of a draw, on 32 rows of logits of several shapes, and of one sort of them."""
    rows = []
    for kind, scale in {"peaked": 6, "medium": 3, "flat": 1, "flat, bfloat16": 1}.items():
        logits = torch.randn(32, vocab_size, generator=torch.Generator().manual_seed(0)).to(device) * scale
        logits = logits.bfloat16() if "bfloat16" in kind else logits  # many ties
        kept = int(top_p_filter(logits, 0.9).isfinite().sum(-1).median())
        cases: dict[str, tuple] = {"sort": (torch.sort,), "filter": (top_p_filter, 0.9), "draw": (sample_token, 0.9)}
        for number in range(rounds + 1):
            times = {n: milliseconds(f, logits, *more, device=device) for n, (f, *more) in cases.items()}
            rows.append({"logits": kind, "kept": kept, "round": number} | {f"{n}_ms": t for n, t in times.items()})
    cost = pd.DataFrame(rows).query("round > 0")  # the first warms up
    return cost.assign(**{"filter / sort": cost["filter_ms"] / cost["sort_ms"]})
