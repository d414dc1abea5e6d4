"""The model proxy: the agent's only way to a model. No record, no model; no recorded decision, no tool call.

It holds the provider's key; the agent has a token that is worth nothing elsewhere. It works inside the forwarder, so
that a request and what the plugin has recorded are judged in one place. Needs aiohttp (the extra `stack`).
"""

from .server import Config, Proxy, Upstream

__all__ = ["Config", "Proxy", "Upstream"]
