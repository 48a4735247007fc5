"""The way out: folders and files of a trained run that others read."""
