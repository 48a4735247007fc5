"""Comparisons of methods: plan, tuning, workers, statistics and report, all read from run folders."""
