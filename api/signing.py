"""The key that signs checkpoints, from where the settings say.

Invariant: a key that was named is never made up; one that was made up stays, where only this user can read it.
"""

import logging

from adapters.checkpoints import KeyUnusableError, SigningKey
from api.settings import PREFIX, Settings

log = logging.getLogger(__name__)

DEFAULT_FILE = "checkpoint-key.pem"


def signing_key(settings: Settings) -> SigningKey:
    """The key in force; the first time without one, a new key in the data directory.

    Raises `KeyUnusableError`, with the setting to look at.
    """
    try:
        if settings.checkpoint_key is not None:
            return SigningKey.parse(settings.checkpoint_key.get_secret_value())
        if settings.checkpoint_key_file is not None:
            return SigningKey.read(settings.checkpoint_key_file, make=False)
        file = (settings.data_directory / DEFAULT_FILE).absolute()
        if not file.exists():
            log.warning("a new key that signs checkpoints is made in %s; every process needs the same one", file)
        return SigningKey.read(file, make=True)
    except KeyUnusableError as error:
        raise KeyUnusableError(f"{PREFIX}CHECKPOINT_KEY or {PREFIX}CHECKPOINT_KEY_FILE: {error}") from None
