"""The gateway's page: what it saves and loses, and the buttons that steer it."""
