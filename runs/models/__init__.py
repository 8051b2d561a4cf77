"""The models that are measured on: how they were trained, and what is kept of them."""
