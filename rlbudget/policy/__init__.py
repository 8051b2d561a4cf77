"""The policy: observation, network, folder, controller; and what replaying one on traces gives."""
