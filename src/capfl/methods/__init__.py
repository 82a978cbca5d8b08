"""Federated methods: parts that answer one question each, and rows of parts.

``table`` has the rows. The questions: what is trained and what travels (``factors``), how updates are combined
(``combine``), who learns with whom (``grouping``, ``peers``), which ranks a client has (``ranks``, ``posterior``), what
it takes home (``take_home``). ``robust`` and ``private`` stand in for a row's way to combine; ``items`` is privacy in
clients' own steps.
"""

from capfl.methods.method import Method
from capfl.methods.table import METHODS, build, describe

__all__ = ["METHODS", "Method", "build", "describe"]
