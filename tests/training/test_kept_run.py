"""What a run can be set back to, on disk."""

from types import SimpleNamespace

import pytest

from hf_reloss.training.kept_run import KeptRun


@pytest.fixture
def run(tmp_path):
    args = SimpleNamespace(output_dir=str(tmp_path), push_to_hub=False, save_only_model=False, should_save=True)
    trainer = SimpleNamespace(
        args=args,
        control=SimpleNamespace(should_save=False),
        state=SimpleNamespace(best_model_checkpoint=None),
        accelerator=SimpleNamespace(wait_for_everyone=lambda: None),
    )
    return KeptRun(trainer)


def write(folder, step, content):
    (folder / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
    file = folder / f"checkpoint-{step}" / "model"
    file.unlink(missing_ok=True)
    file.write_text(content)
    return file.parent


def contents(folder):
    return {path.name: (path / "model").read_text() for path in sorted(folder.glob("checkpoint-*"))}


def kept(run, tmp_path, step):
    run.keep()
    assert run.trainer.args.output_dir == str(tmp_path / "_own_loss")
    write(tmp_path / "_own_loss", step, "as it was")
    assert run.saved(step)
    assert run.trainer.args.output_dir == str(tmp_path)
    assert (run.checkpoint(step) / "model").read_text() == "as it was"


def test_the_best_checkpoint_so_far_is_there_again_though_it_was_deleted(run, tmp_path):
    best = write(tmp_path, 4, "best")
    run.trainer.state.best_model_checkpoint = str(best)
    kept(run, tmp_path, 6)
    (best / "model").unlink()
    best.rmdir()
    run.go_back()
    assert contents(tmp_path) == {"checkpoint-4": "best"}
    run.remove()
    assert contents(tmp_path) == {"checkpoint-4": "best"}
    assert not (tmp_path / "_own_loss").exists()


@pytest.mark.parametrize("is_brought_back", [True, False])
def test_of_two_runs_the_checkpoints_of_one_are_left(run, tmp_path, is_brought_back):
    for step in (4, 8, 12):
        write(tmp_path, step, "first")
    kept(run, tmp_path, 6)
    run.put_away(6)
    assert contents(tmp_path / "_own_loss" / "first") == dict.fromkeys(
        ["checkpoint-12", "checkpoint-4", "checkpoint-8"], "first"
    )
    (tmp_path / "checkpoint-4" / "model").unlink()  # by the limit of the other run
    (tmp_path / "checkpoint-4").rmdir()
    for step in (8, 10):
        write(tmp_path, step, "second")
    if is_brought_back:
        run.bring_back()
    run.remove()
    left = ["checkpoint-12", "checkpoint-4", "checkpoint-8"] if is_brought_back else ["checkpoint-10", "checkpoint-8"]
    assert contents(tmp_path) == dict.fromkeys(left, "first" if is_brought_back else "second")
