"""The key that signs checkpoints, from where the settings say.

Invariant: a key that was named is never made up; one that was made up stays, where only this user can read it.
"""

from adapters.checkpoints import KeyUnusableError, SigningKey
from api.settings import PREFIX, Settings

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
        return SigningKey.read(settings.data_directory / DEFAULT_FILE, make=True)
    except KeyUnusableError as error:
        raise KeyUnusableError(f"{PREFIX}CHECKPOINT_KEY or {PREFIX}CHECKPOINT_KEY_FILE: {error}") from None
