"""Engines move bytes between server and clients and do nothing else.

Nothing is imported here: the network's own processes do without torch.
"""
