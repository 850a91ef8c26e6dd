"""Log metrics to metrics.jsonl and to Weights & Biases.

The training imports only `tracker`. Everything that talks to W&B runs in separate processes: `wandb_mirror`, `sync` and
`dashboard`, which share `artifacts` (files to upload) and `uploaded` (what W&B already has). report/ makes pages that
need no server.
"""
