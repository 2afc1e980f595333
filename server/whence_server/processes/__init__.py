"""Child processes of the server: messages, heartbeat and watchdog."""
