"""Recorder that follows a Trainer and writes its training record."""
