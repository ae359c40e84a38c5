"""`edgevlm serve`: one loaded model behind OpenAI's protocol, and a page to talk to it.

    request ── guard ──▶ protocol ── conversation ──▶ prompt ── engine ──▶ tokens ── wire ──▶ SSE

Needs the extra `serve`; nothing else of the package imports this room.
"""
