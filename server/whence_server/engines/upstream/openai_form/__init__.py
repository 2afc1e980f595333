"""Requests and answers in the form of OpenAI's API, which several kinds of upstreams share."""
