"""The two sides of a round, and how they talk: bytes in, bytes out, state in, state out.

``agreement`` is what both sides know before the first round, ``server`` and ``client`` are the sides, ``door`` checks
what updates claim, and ``talk`` has requests of one kind and their replies. ``keyring``, ``sums`` and ``cohort`` are of
secure aggregation: a client's keys, the server's sums, and a turn of a round.
"""
