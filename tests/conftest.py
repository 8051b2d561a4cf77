"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A loaded machine is slow at making examples; that is not a fault of the test.
settings.register_profile("rlbudget", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rlbudget")
