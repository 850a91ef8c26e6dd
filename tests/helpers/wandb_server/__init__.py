"""A small W&B server for tests: what the client, the agent and the workspaces package ask it."""
