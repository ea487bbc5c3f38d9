"""Readers of public logs: each writes a data folder in the event-log contract and returns how much it wrote."""
