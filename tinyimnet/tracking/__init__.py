"""Metrics to metrics.jsonl and to Weights & Biases.

The training imports `tracker` alone; what speaks to W&B runs in processes of its own (mirror, sync, dashboard), with what
they send (artifacts) and what W&B has already (uploaded). Pages that need no server are in report/.
"""
