"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A loaded machine is slow, at making examples and at running them: no fault of the test.
settings.register_profile("rlbudget", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples each time, for runs/test.sh: what is refused is refused for the change. Others
# are drawn wherever pytest is started by hand.
settings.register_profile("same", settings.get_profile("rlbudget"), derandomize=True)
settings.load_profile("rlbudget")
