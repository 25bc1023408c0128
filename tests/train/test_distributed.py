import numpy as np
import pytest
from torch.distributed import HashStore

from sdpl.errors import UserError
from sdpl.train.distributed import Processes, choose_device


@pytest.mark.parametrize("size", [1, 2, 5, 16])
@pytest.mark.parametrize(("count", "cuts"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_shares_cover_a_batch_once_in_nearly_equal_parts(size, count, cuts):
    shares = [Processes(rank, count).share(np.arange(size), cuts) for rank in range(count)]
    parts = [part for share in shares for part in share]
    assert np.concatenate(parts).tolist() == list(range(size))
    assert all(len(part) for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_torchrun_gives_each_process_its_own_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UserError, match=r"'cuda:0' is one GPU for 2 processes: say 'cuda'"):
        choose_device("cuda:0")


def test_only_a_run_that_this_torchrun_began_goes_on_by_itself():
    store = HashStore()
    first, second = Processes(0, 2, store), Processes(1, 2, store)
    assert not first.began("out")
    second.begin("out")  # the first process says it
    assert not first.began("out")
    first.begin("out")
    assert second.began("out")
    assert not second.began("other")
    assert not Processes().began("out")
