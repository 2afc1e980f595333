"""One HTTP client for all kinds of upstreams: connections, streams of events, errors."""
