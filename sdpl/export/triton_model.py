"""The model of Triton's Python backend: a bundle beside this file, run by sdpl.

Written by `sdpl-export --triton`. The Python of the backend needs sdpl with the extra of its engine, and numpy < 2 for
backends built before Triton 24.12.
"""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from sdpl.errors import UserError
from sdpl.preprocess import preprocess
from sdpl.runtime import Recognizer


class TritonPythonModel:
    """Scores of images, which are pixels (`image`) or files (`jpeg`), several requests at a time."""

    def initialize(self, args):
        path = Path(args["model_repository"]) / args["model_version"] / "model.sdpl"
        self._recognizer = Recognizer.open(path)

    def execute(self, requests):
        """One response for each request, all their images in one batch."""
        images = [self._images(request) for request in requests]
        good = [each for each in images if not isinstance(each, UserError)]
        scores = self._recognizer.scores(np.concatenate(good)) if good else None  # [B,C]
        responses, start = [], 0
        for each in images:
            if isinstance(each, UserError):
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(each))))
                continue
            part = np.ascontiguousarray(scores[start : start + len(each)])
            start += len(each)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("scores", part)]))
        return responses

    def finalize(self):
        self._recognizer.close()

    def _images(self, request):
        """uint8 [B,S,S,3], or what is wrong with them."""
        image = pb_utils.get_input_tensor_by_name(request, "image")
        if image is not None:
            return image.as_numpy()
        files = pb_utils.get_input_tensor_by_name(request, "jpeg")
        if files is None:
            return UserError("expected one input, 'image' or 'jpeg'.")
        try:
            return np.stack([preprocess(file, self._recognizer.image_size) for file in files.as_numpy().ravel()])
        except UserError as error:
            return error
