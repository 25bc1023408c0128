"""model.sdpl to scores, without torch."""

from sdpl.runtime.recognition import Recognition
from sdpl.runtime.recognizer import Recognizer

__all__ = ["Recognition", "Recognizer"]
