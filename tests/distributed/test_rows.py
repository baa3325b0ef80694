"""How many of a process's examples do not fill its last batch up."""

from types import SimpleNamespace

import pytest

from hf_reloss.distributed import own_rows


def trainer(remainder: int, rank: int, sampler_processes: int = 2):
    sampler = SimpleNamespace(num_processes=sampler_processes)
    state = SimpleNamespace(
        end_of_dataloader=True, remainder=remainder, active_dataloader=SimpleNamespace(batch_sampler=sampler)
    )
    args = SimpleNamespace(world_size=2, process_index=rank, dataloader_drop_last=False)
    return SimpleNamespace(args=args, accelerator=SimpleNamespace(gradient_state=state))


@pytest.mark.parametrize(("remainder", "rows"), [(0, (4, 4)), (3, (3, 0)), (5, (4, 1)), (-1, (4, 4))])
def test_what_accelerate_fills_up_does_not_count(remainder, rows):
    assert tuple(own_rows(trainer(remainder, rank), 4) for rank in (0, 1)) == rows


@pytest.mark.parametrize("remainder", range(8))
def test_batches_that_are_shared_out_already_are_whole(remainder):
    """As of train_sampling_strategy="batch_rebalance", where the processes have batches of different sizes."""
    assert [own_rows(trainer(remainder, rank, 1), number) for rank, number in ((0, 3), (1, 5))] == [3, 5]
