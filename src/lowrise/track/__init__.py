"""The open track: entries under one budget of inference bytes and one of training FLOPs, decided by a rule
that was written down before.
"""
