"""How dense linear maps are recognized in any model, and those of them that map tokens in or out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is Hugging Face's `Conv1D`: a linear map that stores W transposed, in x out (GPT-2)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def dense_weight(module: nn.Module) -> Tensor | None:
    """W (out x in, a view) of a module that is a plain dense linear map, or None.

    Plain means exactly `nn.Linear` or Hugging Face's `Conv1D`: a subclass may read its weight in other ways.
    """
    if type(module) is nn.Linear:
        return module.weight
    if is_conv1d(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.T
    return None


# Names of language-model and classification heads in transformers, torchtitan, litgpt, GPT-NeoX, OLMo-core.
HEAD_NAMES = frozenset(
    {"lm_head", "embed_out", "output_projection", "score", "classifier", "classification_head", "qa_outputs"}
)


def head_and_embedding_weights(model: nn.Module) -> set[int]:
    """`id` of every weight that maps tokens in or out: embeddings, `get_output_embeddings()`, what is in a
    module that is named as heads are (`HEAD_NAMES`), the one linear map with as many rows as the largest
    embedding, the last map where its rows are those of a padded vocabulary, and what they share.
    """
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    modules: list[nn.Module] = [*embeddings]
    modules += [m for name, m in model.named_modules() if not HEAD_NAMES.isdisjoint(name.split("."))]
    modules += _declared_heads(model.modules())
    rows = max((m.num_embeddings for m in embeddings), default=0)
    maps = [(m, len(w)) for m in model.modules() if (w := dense_weight(m)) is not None]
    as_many = [m for m, count in maps if count == rows]
    # Several are no heads: a model whose width is the size of its vocabulary.
    modules += as_many if len(as_many) == 1 else []
    if not as_many and maps and _is_padded(rows, [count for _, count in maps]):
        modules.append(maps[-1][0])
    return {id(p) for module in modules for p in module.parameters(recurse=False)}


def _is_padded(vocabulary: int, rows: Sequence[int]) -> bool:
    """Whether the last of linear maps with these rows, and no other, has those of a vocabulary that is padded
    to a multiple, as for fast products.
    """
    padded = {-(-vocabulary // multiple) * multiple for multiple in (8, 16, 32, 64, 128, 256)}
    return vocabulary > 0 and rows[-1] in padded and rows.count(rows[-1]) == 1


def _declared_heads(modules: Iterable[nn.Module]) -> list[nn.Module]:
    heads = []
    for module in modules:
        declare = getattr(module, "get_output_embeddings", None)
        head = declare() if callable(declare) else None
        if isinstance(head, nn.Module):
            heads.append(head)
    return heads
