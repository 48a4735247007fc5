"""What every replay shares: the lines that are printed, and how an error is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrise.errors import UsageError

Fixture = dict[str, np.ndarray]


@dataclass(frozen=True)
class Line:
    """One compared number; `bar` None marks an entry that is not covered."""

    case: str
    error: float = 0.0
    bar: float | None = None
    refused: str = ""
    """Why the case could not be run."""

    @property
    def failed(self) -> bool:
        """A NaN error fails too."""
        return self.bar is not None and not self.error <= self.bar

    def __str__(self) -> str:
        if self.refused:
            return f"{self.case}  -  -  refused: {self.refused}"
        if self.bar is None:
            return f"{self.case}  -  -  not covered"
        return f"{self.case}  {self.error:.3e}  {self.bar:.0e}  {'FAIL' if self.failed else 'ok'}"


def guarded(case: str, replay: Callable[..., Iterator[Line]], *arguments: Any) -> Iterator[Line]:
    """The lines of one case. What the file lacks, or lowrise refuses, is one line, and other cases go on."""
    try:
        yield from replay(*arguments)
    except KeyError as error:
        yield Line(case, refused=f"the file lacks {error}")
    except UsageError as error:
        yield Line(case, refused=" ".join(str(error).split()))


def tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.tensor(array, dtype=dtype)


def max_error(got: Tensor, golden: Tensor, start: Tensor | float) -> float:
    """Largest error over the largest movement from `start` (over the largest value, with start 0)."""
    return ((got - golden).abs().max() / (golden - start).abs().max()).item()


def frobenius_error(got: Tensor, golden: Tensor, start: Tensor | float) -> float:
    """Frobenius norm of the error over that of the movement from `start`, over all steps together."""
    return (torch.linalg.vector_norm(got - golden) / torch.linalg.vector_norm(golden - start)).item()
