"""A peer-to-peer node that runs sandboxed WASM agents and signs what it ran."""

__version__ = "0.1.0"
