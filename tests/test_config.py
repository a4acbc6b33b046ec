"""Every option once: the same name, default, range and help in the dataclass, on the command line and in a run row."""

import argparse
import dataclasses
import inspect
import math
from collections import namedtuple
from pathlib import Path

import pytest
from oracles import ROOT

from workbook import config
from workbook.config import Options, OutputConfig, TrainingConfig, make_parser, read_config, run_columns

CONFIGS = [
    value
    for value in vars(config).values()
    if inspect.isclass(value) and issubclass(value, Options) and value is not Options
]
FIELDS = [(each, field) for each in CONFIGS for field in dataclasses.fields(each)]
IDS = [field.name for _, field in FIELDS]
BOUNDED = [
    (each, field)
    for each, field in FIELDS
    if math.isfinite(field.metadata["low"]) or math.isfinite(field.metadata["high"])
]


def action(field):
    """The argparse action of an option."""
    return make_parser(*CONFIGS)._option_string_actions[f"--{field.name}"]


def is_many(field):
    return isinstance(field.default, tuple)


def parsed(each, *arguments):
    return read_config(each, make_parser(each, prog="test").parse_args(arguments))


def test_there_are_options_of_all_kinds_and_no_name_comes_twice():
    assert [each.__name__.removesuffix("Config") for each in CONFIGS] == [
        "Text",
        "Model",
        "Batch",
        "Training",
        "Sample",
        "Machine",
        "Output",
    ]
    assert len(FIELDS) >= 50 and len(set(IDS)) == len(IDS)


@pytest.mark.parametrize("each, field", FIELDS, ids=IDS)
def test_each_field_is_an_option_with_help_and_the_same_default(each, field):
    option = action(field)
    assert option.dest == field.name and option.default == field.default
    assert len(option.help) > 8 and "%%" not in option.help % vars(option)
    assert getattr(each(), field.name) == field.default == getattr(parsed(each), field.name)


def test_help_is_that_of_the_fields_and_states_the_defaults():
    text = " ".join(make_parser(*CONFIGS).format_help().split())
    for each, field in FIELDS:
        assert field.metadata["help"][:40].split(";")[0] in text, field.name
        assert each.__doc__.splitlines()[0] + ":" in text
    assert "(0.001)" in text and "(128)" in text and "(0.95 1.0)" in text


@pytest.mark.parametrize("each, field", BOUNDED, ids=[field.name for _, field in BOUNDED])
def test_a_range_is_kept_on_both_ways_in_with_the_same_words(each, field, capsys):
    rule = field.metadata
    ends = [end for end in (rule["low"], rule["high"]) if math.isfinite(end)]
    inside = [end for end in ends if end != rule["low"] or not rule["above"]]
    outside = [rule["low"] - (not rule["above"])] if math.isfinite(rule["low"]) else []
    outside += [rule["high"] + 1] if math.isfinite(rule["high"]) else []
    for value in inside:
        taken = getattr(each(**{field.name: (value,) if is_many(field) else value}), field.name)
        assert getattr(parsed(each, f"--{field.name}", f"{value}"), field.name) == taken
    for value in outside:
        with pytest.raises(ValueError, match=f"^{field.name} is {value}; expected ") as raised:
            each(**{field.name: (value,) if is_many(field) else value})
        words = str(raised.value).split("expected ")[1]
        assert all(f"{end:,}" in words for end in ends) and ("above" in words) is rule["above"]
        with pytest.raises(SystemExit) as ended:
            parsed(each, f"--{field.name}", f"{value}")
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.count("\n") == 1
        assert f"argument --{field.name}: {value} is out of range; expected {words} (see --help)" in said


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "clip", "warm_up_share"])
def test_a_number_that_is_none_is_out_of_range(name, value, capsys):
    with pytest.raises(ValueError, match=f"{name} is {float(value)}; expected"):
        TrainingConfig(**{name: float(value)})
    with pytest.raises(SystemExit):
        parsed(TrainingConfig, f"--{name}={value}")
    assert "out of range" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["many", "1.5", "1e3", ""])
def test_a_whole_number_is_whole(text, capsys):
    with pytest.raises(SystemExit):
        parsed(TrainingConfig, "--steps", text)
    assert f"argument --steps: invalid whole number value: {text!r}" in capsys.readouterr().err


CHOICES = [(each, field) for each, field in FIELDS if "choices" in field.metadata]


@pytest.mark.parametrize("each, field", CHOICES, ids=[field.name for _, field in CHOICES])
def test_choices_are_those_of_the_field_in_any_case(each, field, capsys):
    for choice in field.metadata["choices"]:
        expected = (choice,) if is_many(field) else choice
        for text in (choice, choice.upper(), choice.lower(), choice.capitalize(), choice.replace("-", "")):
            assert getattr(parsed(each, f"--{field.name}", text), field.name) == expected
        assert getattr(each(**{field.name: expected}), field.name) == expected
    with pytest.raises(ValueError, match=f"{field.name} is 'other'; expected one of {field.metadata['choices'][0]}"):
        each(**{field.name: ("other",) if is_many(field) else "other"})
    with pytest.raises(SystemExit):
        parsed(each, f"--{field.name}", "other")
    assert f"argument --{field.name}: invalid choice: 'other'" in capsys.readouterr().err


def test_the_models_of_the_notes_are_names_in_any_case():
    assert parsed(config.ModelConfig, "--models", "lstm", "kgram", "TRANSFORMER").models == (
        "LSTM",
        "k-gram",
        "Transformer",
    )


CONSTANTS = [(each, field) for each, field in FIELDS if "const" in field.metadata]


@pytest.mark.parametrize("each, field", CONSTANTS, ids=[field.name for _, field in CONSTANTS])
def test_an_option_may_stand_without_its_value(each, field):
    const = field.metadata["const"]
    assert field.default != const and getattr(parsed(each, f"--{field.name}"), field.name) == const


SWITCHES = [(each, field) for each, field in FIELDS if isinstance(field.default, bool)]


@pytest.mark.parametrize("each, field", SWITCHES, ids=[field.name for _, field in SWITCHES])
def test_a_switch_turns_its_default_round(each, field):
    flag = f"--no-{field.name}" if field.default else f"--{field.name}"
    assert getattr(parsed(each, flag), field.name) is not field.default


def test_a_configuration_is_fixed_once_it_is_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingConfig().steps = 3
    assert dataclasses.replace(TrainingConfig(), steps=3).steps == 3
    with pytest.raises(ValueError, match="steps is 0; expected 1 to 1,000,000,000"):
        dataclasses.replace(TrainingConfig(), steps=0)


def test_a_wrong_option_is_one_line_and_exit_code_2(capsys):
    for arguments in (["--layers", "3"], ["--steps"], ["--seed", "-1"]):
        with pytest.raises(SystemExit) as ended:
            make_parser(*CONFIGS, prog="test").parse_args(arguments)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.startswith("test: error: ") and said.count("\n") == 1


def test_the_columns_of_a_run_row_are_the_fields_with_plain_values():
    made = [each() for each in CONFIGS] + [OutputConfig(output_dir=Path("some/folder"))]
    row = run_columns(*made)
    assert list(row) == IDS
    assert all(value is None or type(value) in (str, int, float, bool) for value in row.values())
    assert row["top_p"] == "0.95 1.0" and row["models"] == "LSTM k-gram" and row["input_files"] == ""
    assert row["output_dir"] == "folder"  # the name, not the reader's folders
    assert run_columns(TrainingConfig(steps=7)) == dataclasses.asdict(TrainingConfig(steps=7))


def test_the_command_line_takes_its_options_from_here():
    """pico-llm.py adds none of its own, so that a run row says how to make it again."""
    source = (ROOT / "pico-llm.py").read_text(encoding="utf-8")
    assert "make_parser(" in source and "add_argument" not in source


def test_an_error_is_one_line_that_can_be_read(capsys):
    with pytest.raises(SystemExit):
        make_parser(TrainingConfig, prog="test").parse_args(["a\nb", "c" * 3000, "last"])
    error = capsys.readouterr().err
    assert error.startswith(r"test: error: unrecognized arguments: a\nb ccc") and " … " in error and "last" in error
    assert error.count("\n") == 1 and len(error) < 600


def test_a_parser_is_argparse():
    assert isinstance(make_parser(TrainingConfig), argparse.ArgumentParser)


# ---------------------------------------------------------------- options without effect

EFFECT = {  # of NEEDS: options with which it is there, and without
    "--models Transformer": ("--models Transformer", "--models LSTM k-gram"),
    "--models k-gram": ("--models k-gram", "--models LSTM Transformer"),
    "--models k-gram or LSTM": ("--models LSTM", "--models Transformer"),
    "--models k-gram or Transformer": ("--models Transformer", "--models LSTM"),
    "--models k-gram or --validation_stories": ("--models LSTM --validation_stories 2", "--models LSTM"),
    "--input_files": ("--input_files a", "--input_files --tinystories_weight 1 --stories small --max_stories 20"),
    "stories": ("", "--input_files 3seqs.txt --tinystories_weight 0"),
    "a text file": ("--stories a.txt", "--tinystories_weight 1 --stories small --max_stories 20 --input_files a.txt"),
    "--corpus_contexts and --kgram_k above 1": ("--corpus_contexts", "--corpus_contexts --kgram_k 1"),
    "a model with an embedding, or no --hidden_size": (
        "--models LSTM --hidden_size 9",
        "--models k-gram --kgram_net one-hot --hidden_size 9",
    ),
    "--corpus_contexts or --validation_stories": ("--models LSTM --validation_stories 2", "--models k-gram"),
    "another vocabulary than characters": ("--vocabulary bytes", "--vocabulary characters"),
    "batches of sequences": ("--models LSTM k-gram --corpus_contexts", "--models k-gram --corpus_contexts"),
    "no other budget": ("", "--budget_tokens 99"),
    "--validation_stories": ("--validation_stories 2", ""),
    "--max_new_tokens above 0": ("", "--max_new_tokens 0"),
    "--output_dir": ("--output_dir a", ""),
    "--output_dir or --record": ("--record a", ""),
}
NEEDY = [field for _, field in FIELDS if "needs" in field.metadata]


def configuration(options):
    """One of each dataclass, from a command line."""
    args = make_parser(*CONFIGS).parse_args(options.split())
    names = [each.__name__.removesuffix("Config").lower() for each in CONFIGS]
    return namedtuple("Config", names)(*(read_config(each, args) for each in CONFIGS))


@pytest.mark.parametrize("field", NEEDY, ids=[field.name for field in NEEDY])
def test_an_option_that_changes_nothing_is_named(field):
    needs = field.metadata["needs"]
    with_it, without = EFFECT[needs]
    assert config.without_effect(configuration(with_it), [field.name, "seed"]) == []
    assert config.without_effect(configuration(without), [field.name, "seed"]) == [f"--{field.name} (needs {needs})"]


def test_each_need_is_used_and_tried():
    assert EFFECT.keys() == config.NEEDS.keys() == {field.metadata["needs"] for field in NEEDY}


def test_a_parser_of_what_is_given_has_nothing_else():
    given = make_parser(*CONFIGS, only_given=True).parse_args(["--kgram_k", "3", "--compact"])
    assert vars(given) == {"kgram_k": 3, "compact": True}
