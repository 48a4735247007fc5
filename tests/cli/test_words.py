"""The words of a command line: repeated, misnamed, in other projects' words, with ~, in odd encodings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import config_for, run_training

from lowrise.cli import COMMANDS, main
from lowrise.compare.options import CompareConfig
from lowrise.config import advice, load
from lowrise.config.command import Train, recipe_file, starting_config
from lowrise.config.identity import flatten
from lowrise.data import DataConfig
from lowrise.errors import UsageError
from lowrise.flags import parse
from lowrise.inference.options import GenerateConfig
from lowrise.names import lookup, nearest_name

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def error_of(words: list[str], capsys) -> str:
    """The message of a usage error."""
    assert main(words) == 2
    said = capsys.readouterr()
    assert not said.out
    return said.err


# --- flags given twice ------------------------------------------------------------------------------------


def test_lists_are_collected():
    config = parse(
        DataConfig, ["--source", "A", "B", "--source=C", "--vocab-size", "300", "--source", "D"], "x"
    )
    assert config.source == ("A", "B", "C", "D")
    assert config.vocab_size == 300
    words = ["a.toml", "--set", "x.a=1", "--budget", "tokens=1k", "--set", "x.b=2", "--out", "o"]
    request = parse(CompareConfig, words, "compare")
    assert request.set == ("x.a=1", "x.b=2")
    assert request.recipes == ("a.toml",)


def test_dotted_lists_are_collected():
    words = ["--layer.skip", "*.q_proj", "--method", "lowrank", "--layer.skip", "*.k_proj"]
    command = parse(Train, words, "train", default=Train(config=starting_config(words)))
    assert command.config.layer.skip == ("*.q_proj", "*.k_proj")


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["train", "--train.steps", "3", "--train.steps", "4"], "--train.steps"),
        (["train", "--train.grad-clip", "3", "--train.grad_clip=4"], "--train.grad_clip"),
        (["train", "--method", "muon", "--method", "muon"], "--method"),
        (["eval", "x", "--device", "cpu", "--device", "cpu"], "--device"),
        (["generate", "x", "--seed", "1", "--seed", "2"], "--seed"),
        (["data", "prepare", "--vocab_size", "300", "--vocab_size", "400"], "--vocab_size"),
        (["compare", "a.toml", "--seeds", "1", "--seeds", "2"], "--seeds"),
    ],
)
def test_other_flags_given_twice_are_refused(words, flag, capsys):
    assert f"{flag} is given twice" in error_of(words, capsys)


def test_a_setting_given_twice_is_refused(tmp_path, capsys):
    (tmp_path / "r.toml").write_text("")
    words = ["compare", str(tmp_path / "r.toml"), "--budget", "tokens=1k", "--out", str(tmp_path / "out")]
    settings = ["--set", "train.seq_len=8", "--set", "train.seq_len=9"]
    assert "--set train.seq_len is given twice" in error_of([*words, *settings], capsys)


# --- nearest names ----------------------------------------------------------------------------------------

KEYS = [*flatten(load(None, {"method": "spectron"}).to_dict()), "data.tokenizer", "model.hidden_size"]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("train.batch_size", "train.global_batch_size"),
        ("optimizer.learning_rate", "optimizer.lr"),
        ("other.learning_rate", "other.lr"),
        ("learning_rate", "optimizer.lr"),
        ("train.lr", "optimizer.lr"),
        ("train.learning-rate", "optimizer.lr"),
        ("max_steps", "train.steps"),
        ("train.max_grad_norm", "train.grad_clip"),
        ("model.d_model", "model.hidden_size"),
        ("train.warmup_steps", "schedule.warmup"),
        ("train.block_size", "train.seq_len"),
        ("eval.batchsize", "eval.batch_size"),
        ("eval.steps", "eval.every"),
        ("checkpoint.save_steps", "checkpoint.every"),
        ("optimizer.momentun", "optimizer.momentum"),
        ("train.sep_len", "train.seq_len"),
        ("layer.rnak", "layer.rank"),
        ("layer.r", "layer.rank"),
        ("dataset", "data.source"),
        ("train.tokenizer", "data.tokenizer"),
        ("entirely.unrelated", None),
    ],
)
def test_nearest_keys_by_meaning_and_spelling(asked, meant):
    assert nearest_name(asked, KEYS) == meant


def test_keys_of_recipes_and_flags_get_the_same_hint(tmp_path, capsys):
    (tmp_path / "r.toml").write_text("[train]\nbatch_size = 3\n")
    from_file = error_of(["train", str(tmp_path / "r.toml")], capsys)
    assert "unknown key 'train.batch_size'; the nearest is 'train.global_batch_size'" in from_file
    from_flag = error_of(["train", "--train.batch_size", "3"], capsys)
    assert "no flag --train.batch_size; the nearest is --train.global_batch_size" in from_flag


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "tsvd", "--layer.max_drop", "7"], "[layer]: max_drop must be a fraction"),
        (["--method", "lowrank", "--layer.targets", "nothing"], "[layer]: targets: the pattern 'nothing'"),
        (["--method", "muon", "--optimizer.ns_steps", "-1"], "[optimizer]: Muon has ns_steps = -1"),
        (["--method", "galore", "--optimizer.rank", "-3"], "[optimizer]: GaLore: rank -3 is impossible"),
        (["--other.betas", "1", "0.9"], "other.betas = (1.0, 0.9) cannot be"),
        (["--other.eps", "-1"], "other.eps = -1.0 cannot be"),
    ],
)
def test_what_a_class_refuses_is_told_with_its_section_before_the_text(words, told, tmp_path, capsys):
    nowhere = ["--data.source", str(tmp_path / "no-text"), "--run", str(tmp_path / "run")]
    assert told in error_of(["train", *words, *nowhere], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("asked", "meant"), [("fit", "train"), ("evaluate", "eval"), ("convert", "export")])
def test_commands_are_found_by_meaning(asked, meant):
    with pytest.raises(UsageError, match=f"the nearest is '{meant}'"):
        lookup({**COMMANDS, "export": None}, asked, "command", "lowrise")


# --- places -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(text_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "a [bold]run[/bold]"
    run_training(config_for(text_folder, "muon"), folder)
    return folder


def test_train_with_a_run_s_folder_continues_it(trained, capsys):
    assert main(["train", str(trained)]) == 0
    said = capsys.readouterr().out
    assert "Continuing from step 8" in said
    assert f"{trained}/checkpoints/step-00000008" in said, "square brackets are no markup"
    assert f"Report: {trained}/report.html" in said


def test_strict_json_of_eval_stands_alone_on_standard_output(trained, capsys):
    assert main(["eval", str(trained), "--json", "true"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["step"] == 8


def test_files_where_folders_belong_are_usage_errors(tmp_path, capsys, monkeypatch):
    file = tmp_path / "file.txt"
    file.write_text("text")
    for place in (file, file / "x" / "y"):
        assert f"{file} is a file; name a folder" in error_of(["train", "--run", str(place)], capsys)
    (tmp_path / "r.toml").write_text('method = "lowrank"\n')
    words = ["compare", str(tmp_path / "r.toml"), "--budget", "tokens=1k", "--out", str(file)]
    assert f"--out {file}: {file} is a file" in error_of(words, capsys)
    assert f"{file} is a file: give the folder" in error_of(["data", "info", str(file)], capsys)
    assert "is a folder and no run" in error_of(["train", str(tmp_path)], capsys)
    assert "is a folder and no run" in error_of(["compare", str(tmp_path), *words[2:-1], "out"], capsys)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.toml").write_text('method = "muon"\n')
    assert recipe_file("~/r.toml") == tmp_path / "r.toml"
    assert load("~/r.toml").method == "muon"
    assert Train(run=Path("~/x")).given_folder == tmp_path / "x"
    for command in ("eval", "generate"):
        assert f"{tmp_path}/x is not a run directory" in error_of([command, "~/x"], capsys)
    assert f"{tmp_path}/x is not there" in error_of(["data", "info", "~/x"], capsys)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--data.source", "~nobody-of-this-name/x.txt"],
        ["data", "prepare", "--source", "~nobody-of-this-name/x.txt"],
        ["eval", "~nobody-of-this-name/x"],
        ["report", "~nobody-of-this-name/x"],
    ],
    ids=lambda words: words[0],
)
def test_a_home_folder_of_nobody_is_a_message(words, capsys):
    assert "there is no such home folder" in error_of(words, capsys)


@pytest.mark.parametrize("command", [["eval"], ["generate", "--prompt", "the"], ["export", "--to", "hf"]])
def test_a_file_where_a_run_belongs_is_named_as_one(command, tmp_path, capsys):
    (tmp_path / "config.toml").write_text("")
    words = [command[0], str(tmp_path / "config.toml"), *command[1:]]
    assert "config.toml is a file" in error_of(words, capsys)


# --- encodings --------------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    (tmp_path / "r.toml").write_bytes(b'\xef\xbb\xbfmethod = "muon"\n')
    assert load(tmp_path / "r.toml").method == "muon"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_terminal(encoding, trained):
    for words in (["methods"], ["generate", str(trained), "--prompt", "naïve … 世界", "--tokens", "2"]):
        done = subprocess.run(
            [sys.executable, "-m", "lowrise", *words],
            env=ENVIRONMENT | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr


def test_bytes_that_are_no_text_are_refused(capsys):
    assert "'caf\\udce9' on the command line is not text" in error_of(
        ["generate", "x", "--prompt", "caf\udce9"], capsys
    )


# --- what is hardly meant ---------------------------------------------------------------------------------


def test_a_warm_up_longer_than_the_run_is_a_warning(text_folder, tmp_path, capsys):
    config = config_for(text_folder, "muon", **{"train.steps": 6, "schedule.warmup": 100})
    (tmp_path / "r.toml").write_text(config.to_toml())
    assert main(["train", str(tmp_path / "r.toml"), "--run", str(tmp_path / "run")]) == 0
    assert "warning: schedule.warmup = 100 updates is longer than the run" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "told"), [(1, False), (400, True)])
def test_a_text_that_is_read_more_than_once_is_told(steps, told, text_folder, tmp_path, capsys):
    more = {"train.steps": steps, "schedule.warmup": 0, "eval.every": 0, "sample.tokens": 0}
    config = config_for(text_folder, "lowrank", **more)
    (tmp_path / "r.toml").write_text(config.to_toml())
    assert main(["train", str(tmp_path / "r.toml"), "--run", str(tmp_path / "run")]) == 0
    epochs = json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"]
    line = f"The training text is read {epochs:.3g} times in {steps} updates."
    assert (epochs > 1) == told == (line in capsys.readouterr().out)


def test_a_decay_longer_than_the_run_is_a_warning_and_a_negative_one_refused(capsys):
    wsd = {"schedule.name": "wsd", "train.steps": 6}
    told = " ".join(advice(load(None, wsd | {"schedule.decay": 7})))
    assert "schedule.decay = 7 updates is longer than the run (train.steps = 6)" in told
    assert advice(load(None, wsd | {"schedule.decay": 6})) == []
    assert "schedule.decay = -1.0 cannot be" in error_of(["train", "--schedule.decay", "-1"], capsys)


def test_a_rate_of_zero_is_a_warning():
    (told,) = advice(load(None, {"optimizer.lr": 0.0}))
    assert told == "optimizer.lr = 0: no matrix is trained, only what other.lr moves."
    assert advice(load(None, {"optimizer.lr": 1e-3})) == []


def test_a_sample_that_the_model_cannot_give_is_refused_before_training(text_folder, tmp_path, capsys):
    settings = {"sample.tokens": 12, "model.max_seq_len": 16, "sample.prompt": "the river king and the tree"}
    (tmp_path / "r.toml").write_text(config_for(text_folder, "muon", **settings).to_toml())
    assert main(["train", str(tmp_path / "r.toml"), "--run", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "error: sample.tokens = 12 after a prompt of" in error
    assert "model.max_seq_len = 16: ask for at most" in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_no_tokens_are_refused_by_the_flag_s_name_before_the_model_is_read(tmp_path, capsys):
    words = ["generate", str(tmp_path / "nothing"), "--tokens", "0"]
    assert "--tokens 0: at least one token" in error_of(words, capsys)


def test_a_text_may_begin_with_a_dash():
    assert parse(GenerateConfig, ["run", "--prompt", "-hello -x"], "generate").prompt == "-hello -x"
    assert parse(GenerateConfig, ["run", "--prompt=-x", "--seed", "-3"], "generate").prompt == "-x"
    assert parse(Train, ["--run", "-x"], "train").run == Path("-x")


def test_earlier_keys_of_a_recipe_are_one_plain_line(tmp_path, capsys):
    (tmp_path / "r.toml").write_text("[train]\nclip = 0.5\nsteps = 0\n")
    assert main(["train", str(tmp_path / "r.toml")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"warning: {tmp_path}/r.toml: train.clip is called train.grad_clip now")
    assert "train.steps = 0 cannot be" in second


# --- start-up ---------------------------------------------------------------------------------------------

LIGHT = [
    ["--help"],
    ["--version"],
    ["methods"],
    ["trian"],
    ["eval"],
    ["eval", "--help"],
    ["generate", "--tokns", "3"],
    ["compare", "--seeds", "1", "--seeds", "2"],
    ["data", "info", "nowhere"],
    ["serve", "--help"],
    ["export", "--help"],
    ["import", "--help"],
    ["factorize", "--help"],
    ["bench", "--help"],
    ["plan", "--help"],
    ["train", "--help"],
    ["train", "--method", "galore", "--help"],
    ["data", "prepare", "--help"],
    ["methods", "muon"],
    ["train", "--method", "galoree"],
    ["train", "--layer.name", "lowrankk"],
    ["train", "--optimizer.name", "muonn"],
    ["train", "--optimizer.lrr", "1"],
    ["train", "--optimizer.lr", "fast"],
    ["train", "--optimizer.lr", "-1"],
    ["train", "--method", "lowrank", "--layer.rank", "x"],
    ["train", "--model.preset", "huge"],
    ["train", "--train.steps", "0"],
    ["train", "missing.toml"],
    ["train", "--method", "muon", "--optimizer.decay", "product"],
    ["plan", "missing.toml"],
    ["sweep", "missing.toml", "--vary", "seed=0,1", "--out", "x"],
    ["compare", "missing.toml", "--budget", "tokens=1e6", "--out", "x"],
    ["export", "RUN", "--too", "hf"],
]


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_help_tables_and_usage_errors_need_no_torch(words):
    code = (
        "import sys\nfrom lowrise.cli import main\n"
        f"try:\n main({words!r})\nexcept SystemExit:\n pass\n"
        "print({'torch', 'scipy', 'tensorboard', 'transformers', 'numpy'} & {*sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.stderr.splitlines()[-1] == "set()"


def test_public_names_come_when_they_are_used():
    code = (
        "import sys, lowrise\nassert 'torch' not in sys.modules\n"
        "assert {'Llama', 'factorize', 'optim'} <= {*dir(lowrise)}\n"
        "from lowrise import factorize\nassert 'torch' in sys.modules\n"
        "assert not {'scipy', 'tensorboard', 'transformers', 'datasets'} & {*sys.modules}\n"
        "import lowrise.train, lowrise.compare.compare\n"
        "assert not {'tensorboard', 'transformers', 'datasets'} & {*sys.modules}\n"
        "assert lowrise.optim.AdamW and lowrise.Llama is lowrise.model.Llama\n"
        "from lowrise import *\nassert Llama and layers\n"
    )
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True, timeout=240)
    import lowrise

    with pytest.raises(AttributeError, match="no attribute 'Lama'"):
        _ = lowrise.Lama


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_recipe_in_another_encoding_is_told(encoding, tmp_path):
    """As PowerShell's `>` writes one."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('method = "muon"  # caf\xe9', encoding=encoding)
    with pytest.raises(UsageError, match=r"recipe\.toml is not text in UTF-8 .*save it as UTF-8"):
        load(recipe)
