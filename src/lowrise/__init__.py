"""lowrise: pretrain language models from scratch in low rank.

```python
import lowrise
from lowrise.optim import Spectron

model = lowrise.Llama(lowrise.LlamaConfig.preset("60m"))  # or any torch or Hugging Face model
lowrise.factorize(model, layer="lowrank", rank=128)
optimizer = Spectron.from_model(model, lr=0.01, other_lr=1e-3)
```
"""

__version__ = "0.1.0"

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
