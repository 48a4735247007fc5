"""Reports as self-contained HTML, made from the files of a run."""
