"""Every error that capfl raises on purpose. Each message names the culprit and the remedy."""


class CapflError(Exception):
    """Base of all errors below: the CLI prints it without a traceback and exits with 2."""


class ConfigError(CapflError):
    """A run is described wrongly. Lists every mistake found, one a line."""


class DataError(CapflError):
    """A row, file, partition or label cannot be used. Names file, line and field where there is one."""


class ModelError(CapflError):
    """A base model, tokenizer or adapter cannot be loaded or does not fit."""


class WireError(CapflError):
    """A message cannot be decoded against its template. Nothing of it has been applied."""


class VersionError(WireError):
    """A client is sent what leads from a version of an adapter that it does not have. It has to be sent the whole."""


class TrainingError(CapflError):
    """Local training went wrong (a loss that is not finite)."""


class CheckpointError(CapflError):
    """A run folder cannot be written, read or resumed."""


class ClientError(CapflError):
    """A client failed and the run's policy says stop."""

    def __init__(self, stage: str, round: int, client: str, reason: str) -> None:
        super().__init__(f"client {client!r} failed in round {round} ({stage}): {reason}")
        self.stage, self.round, self.client, self.reason = stage, round, client, reason
