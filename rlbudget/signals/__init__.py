"""Signals: numbers that are free while decoding, made of logits, questions and trial answers."""
