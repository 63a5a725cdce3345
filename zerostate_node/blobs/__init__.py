"""
Bytes by content address: a folder of them, and how peers hand them to each other. Nothing is
believed before its digest was checked.
"""
