"""Traces: full decodes with the answer that a stop at each checkpoint would have given."""
