"""A small W&B server for tests, with what the wandb client, its agent and wandb-workspaces request."""
