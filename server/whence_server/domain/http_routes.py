"""Routes of the HTTP server whose requests are put on record."""

from typing import Final

CHAT_COMPLETIONS: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
KEYS: Final = "/keys.json"

GENERATIONS: Final = "/api/v1/generations"
EVENTS: Final = f"{GENERATIONS}/{{generation_id}}/events"

RECORDED: Final = frozenset({CHAT_COMPLETIONS, COMPLETIONS, RESPONSES, GENERATIONS, EVENTS})
