"""How good: policies against rules and rivals, certificates, comparisons, scored answers."""
