"""One recipe, many settings: grids, random draws and optuna, in parallel workers, one table."""
