"""The gateway: early stopping in front of any OpenAI-compatible server."""
