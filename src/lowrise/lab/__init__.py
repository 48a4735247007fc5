"""Comparisons and reports: what is read from run directories, never from a running process."""
