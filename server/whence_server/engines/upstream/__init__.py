"""The engines of others, reached over HTTP: one client, and one small adapter for each kind."""
