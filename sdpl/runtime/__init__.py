"""model.sdpl to scores, without torch."""

from sdpl.runtime.recognizer import Recognition, Recognizer

__all__ = ["Recognition", "Recognizer"]
