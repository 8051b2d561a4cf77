"""The ``rlbudget`` command, one file a group of subcommands."""
