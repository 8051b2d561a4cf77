"""The controller inside other decoders: what it costs, and the conformance suite."""
