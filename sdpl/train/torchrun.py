"""torchrun, which leaves the last word to `sdpl train`: `python -m sdpl.train.torchrun OPTIONS -m sdpl train ...`

torchrun itself ends with a traceback of its own and a table of processes whenever one of them ended with an error, even
when that was one line about the configuration. Options, environment and behaviour are torchrun's.
"""

import logging
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(args: Sequence[str] | None = None) -> int:
    """The exit status: of the process that failed first (1 if a signal ended it); 130 where torchrun was stopped."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main(args)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return max(failure.exitcode, 1)
    except (SignalException, KeyboardInterrupt):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
