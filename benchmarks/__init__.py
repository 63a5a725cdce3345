"""The workload of this project beside the same on what a user would pick instead."""
