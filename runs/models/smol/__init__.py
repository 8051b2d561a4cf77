"""SmolLM2-135M-Instruct, taught to reason by an adapter."""
