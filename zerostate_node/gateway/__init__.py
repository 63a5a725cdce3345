"""The HTTP gateway: REST, events and a page over a desk."""

from zerostate_node.gateway.options import GatewaySettings
from zerostate_node.gateway.server import Gateway

__all__ = ("Gateway", "GatewaySettings")
