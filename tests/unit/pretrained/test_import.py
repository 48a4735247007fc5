"""Hugging Face folders come in: the same function, the same text, or a sentence that says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import config_for, console, run_training, trainer_for, write_text

from lowrise.cli import main
from lowrise.config import load
from lowrise.data.tokenizer import Tokenizer, train_bpe
from lowrise.errors import UsageError
from lowrise.evaluation.measure import evaluate_run
from lowrise.export.huggingface import write_folder
from lowrise.layers import CoLALinear, LowRankLinear, SparseLowRankLinear
from lowrise.model import Llama, LlamaConfig, build_model
from lowrise.pretrained.adopt import adopted
from lowrise.pretrained.factorize_folder import factorize_folder
from lowrise.pretrained.folder import open_folder
from lowrise.pretrained.import_run import import_run
from lowrise.pretrained.options import FactorizeOptions, ImportOptions
from lowrise.runs.build import model_from
from lowrise.runs.load import load_run
from lowrise.train.warm_start import start_from_model

CPU = torch.device("cpu")
TOKENS = torch.arange(24).view(2, 12)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["the rank of a matrix is small and its norm is bounded by one . \n"] * 3, 280)


def model_of(layer: str, **changes: Any) -> Llama:
    """Grouped heads, unlike numbers everywhere, ranks that differ between maps of different size."""
    shape = {"vocab_size": 300, "num_kv_heads": 1, "init_std": 0.2, "rope_theta": 500.0, "norm_eps": 1e-5}
    config = LlamaConfig.preset("nano", **{**shape, "max_seq_len": 64, **changes})
    rank = {} if layer == "dense" else {"rank": 0.25}
    model = build_model(config, layer=layer, seed=3, **rank)
    if layer == "sltrain":
        for module in model.modules():
            if isinstance(module, SparseLowRankLinear):
                module.A.data.normal_(std=0.05)
    return model.eval()


def folder_of(path: Path, tokenizer: Tokenizer, layer: str = "dense", **changes: Any) -> Llama:
    path.mkdir()
    model = model_of(layer, **changes)
    write_folder(path, model, tokenizer, "dense" if layer == "dense" else "factored", torch.float32, 100_000)
    return model


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ("dense", torch.nn.Linear),
        ("lowrank", LowRankLinear),
        ("cola", CoLALinear),
        ("sltrain", SparseLowRankLinear),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_becomes_a_run(
    layer: str, kind: type, tied: bool, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = folder_of(tmp_path / "hf", tokenizer, layer, tie_embeddings=tied)
    text = write_text(tmp_path / "text.jsonl", 40)
    options = ImportOptions(folder=tmp_path / "hf", run=tmp_path / "run", source=(str(text),))
    import_run(options)
    run = load_run(tmp_path / "run", "cpu", console())
    assert type(run.model.model.layers[1].mlp.up_proj) is kind
    with torch.no_grad():
        # sltrain's scale is taken out of B and put back: one rounding each
        bound = 1e-5 if layer == "sltrain" else 0
        torch.testing.assert_close(run.model(TOKENS), model(TOKENS), rtol=0, atol=bound)
    assert run.model.config == model.config
    assert run.tokenizer.encode("the rank of\n") == tokenizer.encode("the rank of\n")
    assert run.tokenizer.separator_id == tokenizer.separator_id
    said = console()
    assert evaluate_run(tmp_path / "run", "cpu", said)["val_tokens"] > 0
    assert "has changed" not in said.file.getvalue()  # no text was there before
    with pytest.raises(UsageError, match="not empty"):
        import_run(options)


def test_a_head_that_would_be_lost_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder_of(tmp_path / "hf", tokenizer, tie_embeddings=False)
    change(tmp_path / "hf", tie_word_embeddings=True)
    with pytest.raises(UsageError, match=r"a head of its own.*tie_word_embeddings = true"):
        import_run(ImportOptions(folder=tmp_path / "hf", run=tmp_path / "run"))


def test_what_transformers_saves_comes_in(tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    # The base's name up to transformers 4, which 5 reads and saves by its own.
    rope = {"rope_theta": 777.0, "rms_norm_eps": 1e-5}
    families = {
        "llama": transformers.LlamaConfig(**shape, **heads, **rope),
        "mistral": transformers.MistralConfig(**shape, **heads, **rope, sliding_window=None, head_dim=16),
        "qwen2": transformers.Qwen2Config(**shape, **heads, **rope),  # its biases begin as zero
    }
    for name, config in families.items():
        theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
        theirs.save_pretrained(tmp_path / name)
        tokenizer.write(tmp_path / name / "tokenizer.json")
        with torch.no_grad():
            ours = open_folder(tmp_path / name).model()
            torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=0, atol=2e-5)


def test_families_that_do_not_fit_are_refused_by_what_they_have(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="4.51", reason="earlier ones have no Qwen3")
    shape = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    qwen3 = transformers.AutoModelForCausalLM.from_config(transformers.Qwen3Config(**shape, **heads))
    qwen3.save_pretrained(tmp_path / "qwen3")
    with pytest.raises(UsageError, match=r"k_norm\.weight, and our attention has no norms"):
        open_folder(tmp_path / "qwen3").model()
    qwen2 = transformers.AutoModelForCausalLM.from_config(
        transformers.Qwen2Config(**shape, num_attention_heads=2, num_key_value_heads=1)
    )
    torch.nn.init.ones_(qwen2.model.layers[0].self_attn.k_proj.bias)
    qwen2.save_pretrained(tmp_path / "qwen2")
    with pytest.raises(UsageError, match=r"layers\.0\.self_attn\.k_proj\.bias.*our maps have no biases"):
        open_folder(tmp_path / "qwen2").model()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_type 'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "rope_type 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "mistral", "sliding_window": 32}, "last 32 tokens only"),
        ({"head_dim": 16}, "head_dim 16 is not hidden_size"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"hidden_act": "linear"}, "activation 'linear'"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"hidden_size": "wide"}, "config.json is not a Llama's|whole number"),
        ({"vocab_size": 299}, "does not fit its config.json"),
    ],
)
def test_settings_that_our_model_has_not(
    values: dict[str, Any], sentence: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder_of(tmp_path / "hf", tokenizer)
    change(tmp_path / "hf", **values)
    with pytest.raises(UsageError, match=sentence):
        import_run(ImportOptions(folder=tmp_path / "hf", run=tmp_path / "run"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


def test_a_window_longer_than_every_text_is_none(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder_of(tmp_path / "hf", tokenizer)
    change(tmp_path / "hf", model_type="mistral", sliding_window=4096)
    assert open_folder(tmp_path / "hf").layer == "dense"


@pytest.mark.parametrize(
    "words", [["import", "--run", "run"], ["eval"], ["factorize", "--out", "low", "--rank", "4"]]
)
def test_an_adapter_alone_is_called_one(
    words: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """peft's `save_pretrained` wrote it, so a folder "as save_pretrained writes it" would be no remedy."""
    monkeypatch.chdir(tmp_path)
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    Path("adapter/adapter_model.safetensors").write_bytes(b"")
    assert main([words[0], "adapter", *words[1:]]) == 2
    assert "adapter of peft without its model: merge it" in capsys.readouterr().err.replace("\n", " ")


def test_broken_folders_are_sentences(tmp_path: Path, tokenizer: Tokenizer, capsys: Any) -> None:
    folder_of(tmp_path / "hf", tokenizer)
    for name, sentence in (
        ("config.json", "There is no config.json"),
        ("tokenizer.json", "has no tokenizer.json: save the tokenizer into it"),
        ("model.safetensors.index.json", "no model.safetensors and no index"),
    ):
        broken = tmp_path / name.replace(".", "-")
        shutil.copytree(tmp_path / "hf", broken)
        (broken / name).unlink()
        assert main(["import", str(broken), "--run", str(tmp_path / "run")]) == 2
        assert sentence in capsys.readouterr().err.replace("\n", " ")
    shard = sorted((tmp_path / "hf").glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    assert main(["import", str(tmp_path / "hf"), "--run", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_model_alone_is_told_who_decides_its_ids(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder_of(tmp_path / "hf", tokenizer)
    (tmp_path / "hf" / "tokenizer.json").unlink()
    with pytest.raises(UsageError) as without:
        open_folder(tmp_path / "hf").tokenizer()
    (tmp_path / "hf" / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UsageError, match="compare its ids with sentencepiece's"):
        open_folder(tmp_path / "hf").tokenizer()
    assert "tokenizer.model" not in str(without.value)


def test_a_mixture_of_layers_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder_of(tmp_path / "hf", tokenizer, "lowrank")
    factors = json.loads((tmp_path / "hf" / "config.json").read_text())["factors"]
    factors["layers.1.mlp.up_proj"]["activation"] = "silu"
    change(tmp_path / "hf", factors=factors)
    with pytest.raises(UsageError, match=r"mixes kinds of factored maps \(model\."):
        open_folder(tmp_path / "hf")


# ---- init.model


def started(config: Any, folder: Path) -> Any:
    trainer = trainer_for(config, folder)
    trainer.directory.begin(trainer.config)
    trainer._resume()
    return trainer


@pytest.mark.parametrize(
    ("held", "method", "exact"),
    [
        ("dense", "adamw", True),
        ("dense", "lora", True),
        ("dense", "lowrank", False),
        ("lowrank", "lowrank", True),  # the same ranks
        ("lowrank", "adamw", True),  # multiplied out
        ("lowrank", "tsvd", True),
        ("lowrank", "selfguided", True),
        (
            "lowrank",
            "cola",
            False,
        ),  # taken over as a dense weight is, not as if the activation were not there
        ("sltrain", "lora", True),
        ("cola", "cola", True),
    ],
)
def test_any_method_continues_from_a_folder(
    held: str, method: str, exact: bool, text_folder: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = folder_of(tmp_path / "hf", tokenizer, held)
    config = config_for(text_folder, method, **{"init.model": str(tmp_path / "hf"), "model.preset": "nano"})
    trainer = started(adopted(config), tmp_path / "run")
    with torch.no_grad():
        error = float((trainer.model(TOKENS) - model(TOKENS)).abs().max())
    assert (error < 3e-5) is exact
    assert trainer.config.model.rope_theta == 500.0


@pytest.fixture(scope="module")
def spread(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lowrise factorize` makes, with ranks that differ between maps."""
    folder = tmp_path_factory.mktemp("factorized")
    folder_of(folder / "hf", tokenizer)
    write_text(folder / "text.jsonl")
    options = FactorizeOptions(
        folder=folder / "hf",
        out=folder / "low",
        rank=0.25,
        spread="energy",
        measure=(str(folder / "text.jsonl"),),
        tokens=256,
    )
    factorize_folder(options, console())
    assert len(set(open_folder(folder / "low").ranks.values())) > 1
    return folder / "low"


@pytest.mark.parametrize("method", ["lowrank", "spectron", "tsvd", "loro", "fira", "lora"])
def test_methods_continue_at_the_ranks_that_factorize_chose(
    method: str, spread: Path, text_folder: Path, tmp_path: Path
) -> None:
    dense = method in ("fira", "lora")
    settings = {"init.model": str(spread), "train.steps": 2} | ({} if dense else {"layer.rank": "init"})
    config = adopted(config_for(text_folder, method, **settings))
    folder = open_folder(spread)
    trainer = started(config, tmp_path / "run")
    with torch.no_grad():
        torch.testing.assert_close(trainer.model(TOKENS), folder.model()(TOKENS), rtol=0, atol=3e-5)
    if not dense:
        layers = dict(trainer.model.named_modules())
        assert {name: layers[name].rank for name in folder.ranks} == folder.ranks
    again = config_for(text_folder, method, **settings)
    assert run_training(adopted(again), tmp_path / "run")["status"] == "completed"


def test_ranks_that_are_cut_are_told(spread: Path, text_folder: Path, tmp_path: Path) -> None:
    ranks = open_folder(spread).ranks.values()

    def said(method: str, **settings: Any) -> str:
        config = config_for(text_folder, method, **{"init.model": str(spread), **settings})
        lines: list[str] = []
        start_from_model(
            model_from(adopted(config), 300, CPU), config, open_folder(spread).tokenizer(), lines.append
        )
        return " ".join(lines)

    assert f"of rank {min(ranks)} to {max(ranks)} are cut to rank 2" in said("lowrank", **{"layer.rank": 2})
    assert "cut" not in said("lowrank", **{"layer.rank": max(ranks)})
    assert "cut" not in said("lora", **{"layer.rank": 2})


def test_ranks_of_a_folder_need_a_folder_with_ranks(
    text_folder: Path, tmp_path: Path, tokenizer: Tokenizer, capsys: Any
) -> None:
    with pytest.raises(UsageError, match=r"layer\.rank = 'init' cannot be: ranks come from the folder"):
        config_for(text_folder, "lowrank", **{"layer.rank": "init"})
    with pytest.raises(UsageError, match=r"layer\.rank = 'all' should be an integer .* one of 'init'"):
        config_for(text_folder, "lowrank", **{"layer.rank": "all"})
    folder_of(tmp_path / "hf", tokenizer)
    settings = {"layer.rank": "init", "init.model": str(tmp_path / "hf")}
    with pytest.raises(UsageError, match="has no factors: give a rank"):
        adopted(config_for(text_folder, "lowrank", **settings))


def test_a_run_from_a_folder_trains_and_continues(
    text_folder: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder_of(tmp_path / "hf", tokenizer)
    config = adopted(
        config_for(text_folder, "spectron", **{"init.model": str(tmp_path / "hf"), "train.steps": 2})
    )
    first = run_training(config, tmp_path / "run")
    assert (
        first["tokens"] == run_training(config, tmp_path / "run")["tokens"]
    )  # ends at once, of the same recipe


def test_a_run_from_a_folder_goes_on_with_the_same_weights_elsewhere_and_with_no_others(
    text_folder: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    held = {"data.tokenizer": str(tmp_path / "hf" / "tokenizer.json"), "model.preset": "nano"}
    held |= {"schedule.name": "constant", "schedule.warmup": 1.0}

    def train(folder: str, steps: int) -> None:
        settings: dict[str, Any] = {**held, "init.model": str(tmp_path / folder), "train.steps": steps}
        run_training(adopted(config_for(text_folder, "adamw", **settings)), tmp_path / "run")

    folder_of(tmp_path / "hf", tokenizer)
    train("hf", 2)
    shutil.copytree(tmp_path / "hf", tmp_path / "copy")
    train("copy", 3)
    file = min((tmp_path / "copy").glob("*.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(UsageError, match=r"has begun from .*/hf, and init names .*/copy now"):
        train("copy", 4)


def test_an_imported_run_is_ones_own(
    text_folder: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Its places are absolute, and this user is not asked about them; another one is."""
    folder_of(tmp_path / "hf", tokenizer)
    text = write_text(tmp_path / "text.jsonl", documents=40)
    monkeypatch.chdir(tmp_path)
    import_run(ImportOptions(folder=tmp_path / "hf", run=Path("run"), source=("text.jsonl",)))
    monkeypatch.chdir(text_folder)
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0
    assert load(tmp_path / "run" / "config.toml").data.source == (str(text),)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run")]) == 2
    assert "was not made by this user" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model.rope_theta": 10000.0}, r"model\.rope_theta is 500\.0 there and 10000\.0 here"),
        ({"model.num_heads": 1}, r"model\.num_heads is 2 there and 1 here"),
    ],
)
def test_what_would_be_another_function_is_refused(
    settings: dict[str, Any], sentence: str, text_folder: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder_of(tmp_path / "hf", tokenizer)
    config = config_for(text_folder, "adamw", **{"init.model": str(tmp_path / "hf")}, **settings)
    with pytest.raises(UsageError, match=sentence):
        started(adopted(config), tmp_path / "run")


def test_another_tokenizer_and_two_sources_are_refused(
    text_folder: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder_of(tmp_path / "hf", tokenizer)
    other = train_bpe(["quite another text"] * 3, 270)
    other.write(tmp_path / "other.json")
    settings = {"init.model": str(tmp_path / "hf"), "data.tokenizer": str(tmp_path / "other.json")}
    with pytest.raises(UsageError, match="has another tokenizer"):
        started(adopted(config_for(text_folder, "adamw", **settings)), tmp_path / "run")
    with pytest.raises(UsageError, match=r"init\.model = .*weights come from one place"):
        config_for(text_folder, "adamw", **{"init.model": "a", "init.run": "b"})


def test_an_activation_does_not_multiply_out(text_folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder_of(tmp_path / "hf", tokenizer, "cola")
    config = config_for(text_folder, "lowrank", **{"init.model": str(tmp_path / "hf"), "layer.rank": 7})
    with pytest.raises(UsageError, match=r"q_proj has the activation silu.*with the layer cola"):
        started(adopted(config), tmp_path / "run")


def test_biases_that_are_zero_are_dropped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "hf").mkdir()
    model = model_of("dense")
    write_folder(tmp_path / "hf", model, tokenizer, "dense", torch.float32, 10**9)
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file) | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}
    save_file(tensors, file)
    with torch.no_grad():
        assert torch.equal(open_folder(tmp_path / "hf").model()(TOKENS), model(TOKENS))


def test_compare_plans_with_the_folders_shape(
    text_folder: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And knows the run by the hash that `train` will give it."""
    folder_of(tmp_path / "hf", tokenizer)
    config = config_for(text_folder, "lowrank", **{"init.model": str(tmp_path / "hf")})
    recipe = tmp_path / "a.toml"
    recipe.write_text(config.to_toml())
    seen: dict[str, Any] = {}
    monkeypatch.setattr("lowrise.compare.compare.compare", lambda command, **given: seen.update(given) or 0)
    assert main(["compare", str(recipe), "--budget", "tokens=128", "--out", str(tmp_path / "out")]) == 0
    planned = seen["load_recipe"](recipe, {})
    assert (planned.model.rope_theta, planned.model.vocab_size) == (500.0, 300)
    assert planned.hash == adopted(config).hash == adopted(planned).hash
