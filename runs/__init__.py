"""Scripts that make every published number, a folder for each subject; not part of the package.

Each is started as a module from the root of the checkout: ``python -m runs.quality.rivals``; the
shell scripts do so themselves, after making the environment. ``common.py`` is what they share,
``results/`` keeps their last output, and what else they write goes to ``out/``.
"""
