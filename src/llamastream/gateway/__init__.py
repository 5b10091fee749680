"""One OpenAI-compatible address before one or many llama-servers."""

from llamastream.gateway.app import Gateway, create_app
from llamastream.gateway.settings import GatewaySettings

__all__ = ["Gateway", "GatewaySettings", "create_app"]
