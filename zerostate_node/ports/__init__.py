"""
All that a service may touch of the world (`Mesh`, `Ledger`, `Journal`, `Blobs`, `Sandbox`), and all
that a client may ask of the node (`Desk`). Adapters fit themselves to these; only `node.py` has
seen both sides.
"""
