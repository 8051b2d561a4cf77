"""From production back to training: decision log, audits, harvest, retraining, registry."""
