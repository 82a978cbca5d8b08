"""The two sides of a round: bytes in, bytes out, state in, state out.

``agreement`` is what both sides know before the first round, ``server`` and ``client`` are the sides, ``door`` checks
what updates claim.
"""
