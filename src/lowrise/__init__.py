"""lowrise: pretrain language models from scratch in low rank.

```python
import lowrise
from lowrise.optim import Spectron

model = lowrise.Llama(lowrise.LlamaConfig.preset("60m"))  # or any torch or Hugging Face model
lowrise.factorize(model, layer="lowrank", rank=128)
optimizer = Spectron.from_model(model, lr=0.01, other_lr=1e-3)
```

Names are imported where they are first used, so that a command that needs no torch does not wait for it.
"""

from lowrise.lazy import importer

__version__ = "0.1.0"

TYPE_CHECKING = False  # `typing` costs milliseconds, in which a Ctrl-C would still be a traceback
if TYPE_CHECKING:
    from lowrise import layers, optim
    from lowrise.errors import LowriseError, UsageError
    from lowrise.layers import factorize, param_groups
    from lowrise.model import Llama, LlamaConfig
    from lowrise.pretrained.factorized_model import from_pretrained, save_pretrained

__all__ = [
    "Llama",
    "LlamaConfig",
    "LowriseError",
    "UsageError",
    "__version__",
    "factorize",
    "from_pretrained",
    "layers",
    "optim",
    "param_groups",
    "save_pretrained",
]

_HOMES = {
    "Llama": "model",
    "LlamaConfig": "model",
    "LowriseError": "errors",
    "UsageError": "errors",
    "factorize": "layers",
    "from_pretrained": "pretrained.factorized_model",
    "save_pretrained": "pretrained.factorized_model",
    "param_groups": "layers",
    "layers": "",
    "optim": "",
}

__getattr__ = importer(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
