"""The stages of `benchmarks/gpu.py`, each with `run(options, record)`."""
