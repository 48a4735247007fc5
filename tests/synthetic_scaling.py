"""Scaling studies with known constants: points of L(N, D) = E + A / N^alpha + B / D^beta with noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowrise.scaling.points import Point, Points, by_method

BUDGETS = (1e18, 3e18, 9e18, 2.7e19)


@dataclass(frozen=True)
class Law:
    """The constants; those of Chinchilla's points, about."""

    E: float = 1.8
    A: float = 480.0
    B: float = 2085.0
    alpha: float = 0.35
    beta: float = 0.37

    @property
    def params_exponent(self) -> float:
        return self.beta / (self.alpha + self.beta)

    def loss(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    def best_params(self, flops: float) -> float:
        """Of C = 6 N D."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        return ratio ** (1 / (self.alpha + self.beta)) * (flops / 6) ** self.params_exponent


def study(
    rng: np.random.Generator,
    *,
    budgets: tuple[float, ...] = BUDGETS,
    sizes: int = 6,
    span: float = 4.0,
    noise: float = 0.005,
    times: float = 1.0,
    method: str = "one",
    law: Law | None = None,
) -> list[Point]:
    """Sizes from best / span to best * span at each budget. `times`: a method that needs so many times the
    FLOPs of the law, by needing so many times its tokens."""
    law = law or Law()
    points = []
    for budget in budgets:
        best = law.best_params(budget / times)
        for params in np.geomspace(best / span, best * span, sizes):
            tokens = budget / (6 * params)
            loss = float(law.loss(params, tokens / times)) + noise * rng.standard_normal()
            points.append(
                Point(
                    method=method, flops=budget, params=float(params), tokens=tokens, loss=loss, budget=budget
                )
            )
    return points


def points_of(rng: np.random.Generator, **options) -> Points:
    (points,) = by_method(study(rng, **options)).values()
    return points
