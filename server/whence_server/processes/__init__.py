"""Child processes of the server: messages between them, signs of life, and the watchdog."""
