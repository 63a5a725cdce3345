"""py-libp2p behind the `Mesh` port."""
