"""The controller inside somebody else's decoder.

``plan`` holds what all requests of an engine share, ``request`` the way of one of them; every
other module fits the two into one engine and imports that engine alone.
"""
