"""``Request`` for all slots of an engine at once, on the engine's own device.

``slots`` is the state machine, ``network`` the policy and its observation, ``token_tables`` what a
token does to a text. The laws that hold them to their originals are in tests/integrations.
"""
