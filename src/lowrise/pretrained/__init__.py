"""The way in: models in Hugging Face folders, read, made into runs, and factorized."""
