"""Weights in shards, GGUF and our own file; tokenizers of other kinds; options that do not go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors import safe_open
from small_runs import config_for, console, run_training
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from lowrise.cli import main
from lowrise.data import Tokenizer
from lowrise.data.chat import ChatTemplate
from lowrise.data.tokenizer import train_bpe
from lowrise.errors import UsageError
from lowrise.export.export import export_run
from lowrise.export.forms import factors_of, tensors
from lowrise.export.gguf_file import gpt2_vocabulary, write_gguf
from lowrise.export.huggingface import write_folder
from lowrise.export.options import ExportOptions
from lowrise.export.shards import parse_size
from lowrise.export.tokenizer_files import add_template, end_of_turn, write_tokenizer
from lowrise.model import Llama, LlamaConfig, build_model

TEXTS = [
    "the rank of a matrix is small and its norm is bounded by one .",
    "  two  spaces\n\n and 1234 digits\tdef f(x):\r\n return x\n",
    "don't e\u0301 äöü 漢字 <|endoftext|> </s> [UNK]",
    "",
]


def model_of(**changes: Any) -> Llama:
    config = LlamaConfig.preset("nano", vocab_size=320, num_kv_heads=1, init_std=0.2, **changes)
    return build_model(config, layer="lowrank", rank=8, seed=1).eval()


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(TEXTS * 3, 300)


# ---- Hugging Face


def test_large_models_come_in_shards_with_an_index(tmp_path: Path, bpe: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    model = model_of(max_seq_len=64)
    write_folder(tmp_path, model, bpe, "dense", torch.float32, parse_size("100KB"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert [f.name for f in files] == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    assert len(files) > 3
    assert set(index["weight_map"].values()) == {f.name for f in files}
    assert index["metadata"]["total_size"] == 4 * sum(t.numel() for _, t in tensors(model, {}, torch.float32))
    for file in files:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
        # a shard is larger than asked for only where it is a single tensor
        assert file.stat().st_size < 100_000 + 5000 or len(names) == 1
        assert {index["weight_map"][name] for name in names} == {file.name}
        assert file.stat().st_mode & 0o044 == tmp_path.stat().st_mode & 0o044
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(
            other(tokens).logits, model(tokens), rtol=0, atol=2e-5
        )  # logits of about 3
    assert other.config.rope_parameters["rope_theta"] == 10_000.0
    assert other.generation_config.eos_token_id == bpe.separator_id


def test_bfloat16_rounds_once(tmp_path: Path, bpe: Tokenizer) -> None:
    model = model_of()
    merged = dict(tensors(model, {}, torch.float32))
    for name, value in tensors(model, {}, torch.bfloat16):
        assert torch.equal(value, merged[name].to(torch.bfloat16)), name
    write_folder(tmp_path, model, bpe, "factored", torch.bfloat16, 10**9)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.get_tensor("model.layers.0.mlp.up_proj.down.weight").dtype == torch.bfloat16


def test_a_guide_at_work_is_merged_and_a_dropped_one_is_not_there() -> None:
    config = LlamaConfig.preset("nano", vocab_size=50)
    model = build_model(config, layer="selfguided", rank=8)
    assert len(factors_of(model)) == 14  # told no time: the plain low-rank map
    layers = [m for m in model.modules() if hasattr(m, "guided")]
    for layer in layers:
        layer.before_update(2, 10)
        layer.guide.data.normal_()
    assert factors_of(model) == {}
    merged = dict(tensors(model, {}, torch.float32))
    assert torch.equal(
        merged["model.layers.0.self_attn.q_proj.weight"], model.model.layers[0].self_attn.q_proj.dense()
    )
    for layer in layers:
        layer.before_update(6, 10)
    assert len(factors_of(model)) == 14


def test_an_mlp_without_its_activation_is_no_plain_llama(tmp_path: Path, bpe: Tokenizer) -> None:
    model = model_of(mlp_activation="none")
    with pytest.raises(UsageError, match=r"mlp_activation is none.*--form factored"):
        write_folder(tmp_path, model, bpe, "dense", torch.float32, 10**9)


@pytest.mark.parametrize("size", ["", "5 pounds", "-3", "0", "0.0GB"])
def test_a_size_that_is_none_is_a_sentence(size: str) -> None:
    with pytest.raises(UsageError, match=r"--shard-size .* is no size"):
        parse_size(size)


def test_sizes() -> None:
    assert [parse_size(t) for t in ("7", "5GB", "1.5 mb", "2KiB")] == [7, 5 * 10**9, 1_500_000, 2048]


# ---- tokenizers


def word_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(
        TEXTS, trainers.WordLevelTrainer(special_tokens=["[UNK]", "</s>"], show_progress=False)
    )
    return made


def metaspace() -> tokenizers.Tokenizer:
    """As Llama 2's: a mark before every text, begin and end tokens around it, cut to four tokens, padded."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    made.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made.enable_truncation(4)
    made.enable_padding(length=16)
    return made


def prefixed() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_str(train_bpe(TEXTS, 300).text)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made


@pytest.mark.parametrize("make", [word_level, metaspace, prefixed])
def test_auto_tokenizer_gives_our_ids_and_our_text(make: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer(make().to_str())
    write_tokenizer(tmp_path, ours, 64)
    # Beside a Llama's configuration, for which transformers has a tokenizer class of its own.
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    # Where the vocabulary itself holds the separator, we spell it out when a text quotes it; they cannot.
    for text in TEXTS if make is prefixed else [t for t in TEXTS if "</s>" not in t]:
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.eos_token_id == theirs.bos_token_id == ours.separator_id


def test_what_needs_no_change_is_copied_byte_for_byte(bpe: Tokenizer, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, bpe, 64)
    assert (tmp_path / "tokenizer.json").read_text() == bpe.text


# ---- GGUF


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-5), ("float16", 2e-2), ("q8_0", 0.2)])
@pytest.mark.parametrize("tied", [False, True])
def test_gguf_is_read_back(dtype: str, bound: float, tied: bool, tmp_path: Path, bpe: Tokenizer) -> None:
    """More rows than entries, grouped heads, rows of a length that q8_0 cannot cut into blocks."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    model = model_of(tie_embeddings=tied, intermediate_size=100)
    assert bpe.vocab_size < 320
    write_gguf(tmp_path / "model.gguf", model, bpe, dtype, "lowrank")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").eval()
    tokens = torch.arange(2, 22).view(2, 10)  # without the padding token, which would be masked
    with torch.no_grad():
        logits, theirs = model(tokens), other(tokens).logits
        greedy = other.generate(tokens[:1], max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert other.config.tie_word_embeddings is tied
    # The error grows with that of the weights: 2^-24, 2^-11, and half of 1/127 of a block's largest entry.
    assert float((logits - theirs).abs().max()) < bound * float(logits.abs().max())
    if dtype == "float32":
        from lowrise.inference.generate import generate

        assert greedy[0, 10:].tolist() == list(generate(model, tokens[0], max_new_tokens=8, temperature=0))
    # transformers 4 reads a GGUF file into a class that begins a text with a token and takes spaces away
    # before full stops, unless it is told not to, and one space from the beginning in any case.
    read = transformers.AutoTokenizer.from_pretrained
    old = transformers.__version__ < "5"
    begins = [bpe.separator_id] if old else []
    told_nothing = read(tmp_path, gguf_file="model.gguf")
    theirs = read(tmp_path, gguf_file="model.gguf", add_bos_token=False)
    for text in TEXTS[:2]:
        assert told_nothing(text)["input_ids"] == begins + bpe.encode(text)
        assert theirs(text)["input_ids"] == bpe.encode(text)
        decoded = theirs.decode(bpe.encode(text), clean_up_tokenization_spaces=False)
        assert decoded == (text.removeprefix(" ") if old else text)
    assert theirs.eos_token_id == bpe.separator_id


def test_matrices_that_q8_cannot_hold_are_float16(tmp_path: Path, bpe: Tokenizer) -> None:
    gguf = pytest.importorskip("gguf")
    write_gguf(tmp_path / "model.gguf", model_of(intermediate_size=100), bpe, "q8_0", "lowrank")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"


@pytest.mark.parametrize("make", [word_level, metaspace, prefixed])
def test_tokenizers_without_a_name_in_gguf_are_refused(make: Any) -> None:
    with pytest.raises(UsageError, match=r"tokenizer is another kind: take --to hf"):
        gpt2_vocabulary(Tokenizer(make().to_str()), 400)


# ---- options, and the command


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"to": "gguf", "dtype": "bfloat16"}, "choose one of float32, float16, q8_0"),
        ({"dtype": "q8_0"}, "choose one of float32, bfloat16, float16"),
        ({"to": "gguf", "form": "factored"}, "holds dense weights"),
        ({"to": "safetensors", "form": "dense"}, "the run's own tensors"),
        ({"to": "safetensors", "shard_size": "1GB"}, "is one file"),
        ({"shard_size": "much"}, "is no size"),
        ({}, "is not a run directory"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    if options.get("to") == "gguf":
        pytest.importorskip("gguf")
    with pytest.raises(UsageError, match=sentence):
        export_run(ExportOptions(run=tmp_path, **options), console())
    assert list(tmp_path.iterdir()) == []


def test_the_command_and_our_own_file(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_training(config_for(text_folder, "tsvd", **{"train.steps": 2, "eval.every": 0}), run)
    assert main(["export", str(run), "--to", "safetensors"]) == 0
    folder = run / "export" / "safetensors"
    assert f"{folder}: step 2, " in capsys.readouterr().out
    with safe_open(folder / "model.safetensors", "pt") as opened:
        about = opened.metadata()
        names = set(opened.keys())
    rebuilt = Llama(LlamaConfig(**json.loads(about["model"])))
    assert set(rebuilt.state_dict()) - names == {
        f"model.{n}.weight"
        for n in (
            f"layers.{i}.{m}"
            for i in range(2)
            for m in (
                *(f"self_attn.{p}_proj" for p in "qkvo"),
                *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
            )
        )
    }
    layers = json.loads(about["layers"])
    assert layers["model.layers.0.mlp.up_proj"]["class"] == "SVDLinear"
    assert about["step"] == "2"
    assert main(["export", str(run), "--to", "safetensors"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "safetensors", "--force", "true"]) == 0
    assert main(["export", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize(("mark", "ends"), [("<|im_end|>", 2), ("<|endoftext|>", 1), ("<other>", 1)])
def test_generation_ends_at_the_mark_that_a_template_writes_after_an_answer(
    mark: str, ends: int, tmp_path: Path
) -> None:
    """After the mark a model has learned nothing: its answer would go on with turns of its own."""
    encoder = tokenizers.Tokenizer.from_str(train_bpe(["the rank of a matrix"] * 9, 300).text)
    encoder.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = Tokenizer(encoder.to_str())
    model = build_model(LlamaConfig.preset("nano", vocab_size=tokenizer.vocab_size), layer="dense")
    write_folder(tmp_path, model, tokenizer, "dense", torch.float32, 10**9)
    before = json.loads((tmp_path / "generation_config.json").read_text())
    template = ChatTemplate("{% for m in messages %}{{ m.content }}" + mark + "\n{% endfor %}")
    add_template(tmp_path, tokenizer, template)
    separator = tokenizer.separator_id
    expected = separator if ends == 1 else [separator, tokenizer.id_of(mark)]
    found = json.loads((tmp_path / "generation_config.json").read_text())
    assert found == before | {"eos_token_id": expected}


def test_ids_with_a_gap_are_those_that_the_library_gives() -> None:
    """It numbers added tokens without the gap, whatever the file says."""
    described = json.loads(train_bpe(["the rank of a matrix"] * 9, 300).text)
    last = max(described["model"]["vocab"].values())
    mark = dict(described["added_tokens"][0], content="<|im_end|>", id=last + 40)
    described["added_tokens"].append(mark)
    tokenizer = Tokenizer(json.dumps(described))
    number = tokenizer.id_of("<|im_end|>")
    assert number is not None
    assert number < last + 40, "the library follows the file now: both ways agree"
    entries, kinds, _ = gpt2_vocabulary(tokenizer, last + 50)
    assert (entries[number], kinds[number]) == ("<|im_end|>", 3)
    assert entries.count("<|im_end|>") == 1
    template = ChatTemplate("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    assert end_of_turn(tokenizer, template) == number
