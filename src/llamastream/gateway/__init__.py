"""One OpenAI-compatible address before one or many llama-servers."""

from llamastream.gateway.app import Gateway, create_app
from llamastream.gateway.settings import GatewaySettings
from llamastream.gateway.upstreams import Upstreams

__all__ = ["Gateway", "GatewaySettings", "Upstreams", "create_app"]
