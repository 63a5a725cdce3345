"""Bytes by content address behind the `Blobs` port."""
