"""Saving and loading a Hugging Face model whose layers `lowrise.factorize` replaced.

`model.save_pretrained` writes the factors, but `from_pretrained` builds the class of the configuration, whose
dense layers then have random weights: transformers reports missing and unexpected names, and goes on. So
`save_pretrained` here writes the layers into `config.json` (key `lowrise`) and the weights into
`lowrise.safetensors`, a name that transformers does not look for: its `from_pretrained` stops with an error
instead, and `from_pretrained` here builds the layers first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lowrise import __version__
from lowrise.config.writer import naming_writer
from lowrise.errors import LowriseError, UsageError
from lowrise.export.shards import save_tensors
from lowrise.files import strict_json, write_whole
from lowrise.layers.base import LowRankLayer
from lowrise.layers.dense import is_conv1d
from lowrise.layers.registry import LAYERS, layer_class, option_names
from lowrise.pretrained.shape import read_json

WEIGHTS = "lowrise.safetensors"
MARK = "lowrise"


def save_pretrained(model: nn.Module, folder: str | Path) -> None:
    """Write a Hugging Face model with low-rank layers: `config.json`, `generation_config.json` if it has one,
    and `lowrise.safetensors`. Raises `UsageError` for a model of another library or without such layers.
    """
    config: Any = getattr(model, "config", None)
    if not callable(getattr(config, "to_dict", None)) or not callable(
        getattr(model, "save_pretrained", None)
    ):
        raise UsageError(
            f"{type(model).__name__} is no Hugging Face model: save its state_dict, or, for a run of ours, "
            "use lowrise export."
        )
    layers = {name: _described(m) for name, m in model.named_modules() if isinstance(m, LowRankLayer)}
    if not layers:
        raise UsageError(f"{type(model).__name__} has no low-rank layers: use its own save_pretrained.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{WEIGHTS}.tmp"
    save_tensors(_tensors(model), aside, {"format": "pt"})
    generation: Any = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)
    mark = {"version": __version__, "layers": layers}
    values = {**config.to_dict(), "architectures": [type(model).__name__], MARK: mark}
    write_whole(folder / "config.json", strict_json(values, indent=2) + "\n")
    aside.rename(folder / WEIGHTS)


def from_pretrained(folder: str | Path) -> nn.Module:
    """The model that `save_pretrained` wrote, on the CPU, in evaluation mode, in the dtypes of the file.

    Raises `UsageError` for a folder that it did not write, `LowriseError` for one that is damaged.
    """
    import transformers

    folder = Path(folder)
    values = read_json(folder / "config.json")
    if MARK not in values or not (folder / WEIGHTS).is_file():
        raise UsageError(
            f"{folder} was not written by lowrise.save_pretrained (no {WEIGHTS}): use the from_pretrained of "
            "transformers; for factors that model.save_pretrained wrote, build the model, factorize it "
            "in the same way and load its state_dict."
        )
    names = values.get("architectures") or [""]
    model_class = getattr(transformers, names[0], None)
    if model_class is None:
        raise UsageError(
            f"{folder} holds a {names[0]}, which transformers does not have: install the version that "
            "wrote it."
        )
    # transformers 4.48 writes that it chose the attention, not which; read back, that means the slow one.
    theirs = values.keys() - {MARK, "_attn_implementation_autoset"}
    config = model_class.config_class.from_dict({k: values[k] for k in values if k in theirs})
    model = cast(nn.Module, model_class(config))
    with naming_writer(values[MARK].get("version"), str(folder / "config.json")):
        for name, described in values[MARK]["layers"].items():
            _put(model, name, described)
    _load(model, folder / WEIGHTS)
    return model.eval()


def _described(layer: LowRankLayer) -> dict[str, Any]:
    """Class and arguments of a layer, all plain values."""
    name = next(name for name, kind in LAYERS.items() if kind is type(layer))
    options = {option: getattr(layer, option) for option in option_names(type(layer))}
    described = {"layer": name, "rank": layer.rank, "bias": layer.bias is not None, "options": options}
    if hasattr(layer, "guide"):
        described["guide"] = bool(layer.guide_parameters())
    return described


def _put(model: nn.Module, name: str, described: dict[str, Any]) -> None:
    old: Any = model.get_submodule(name)
    rows, columns = _shape(old)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in described["options"].items()}
    arguments = {"bias": described["bias"], "device": "meta", **options}
    kind = layer_class(described["layer"])
    for option in options.keys() - {*option_names(kind)}:
        raise UsageError(f"The layer {described['layer']!r} of {name} has no option {option!r}.")
    layer: Any = kind(columns, rows, described["rank"], **arguments)
    if described.get("guide") is False:
        layer.guide = None
    model.set_submodule(name, layer.to_empty(device="cpu"))


def _shape(module: Any) -> tuple[int, int]:
    """Rows and columns of the weight of an `nn.Linear` or a `Conv1D`, which keeps it transposed."""
    rows, columns = module.weight.shape
    return (columns, rows) if is_conv1d(module) else (rows, columns)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once, tied ones under their first name, and every saved buffer."""
    saved = model.state_dict().keys()
    buffers = {name: b for name, b in model.named_buffers() if name in saved}
    return {
        n: t.detach().cpu().contiguous() for n, t in {**dict(model.named_parameters()), **buffers}.items()
    }


def _load(model: nn.Module, file: Path) -> None:
    try:
        there = load_file(file)
    except (OSError, SafetensorError) as error:
        raise LowriseError(f"{file} is not a whole safetensors file ({error}): copy it again.") from None
    own = _tensors(model)
    if own.keys() != there.keys() or any(own[name].shape != there[name].shape for name in own):
        odd = sorted(own.keys() ^ there.keys()) or sorted(n for n in own if own[n].shape != there[n].shape)
        raise LowriseError(f"{file} does not fit the config.json beside it: {odd[0]} differs.")
    model.load_state_dict(there, strict=False, assign=True)
    tie: Any = getattr(model, "tie_weights", None)
    if callable(tie):
        tie()
