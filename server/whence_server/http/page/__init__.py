"""The page: static files, which read the record over the JSON API."""
