import pytest

from hf_reloss.learning.checkpoints import last_whole_checkpoint


def test_the_last_one_that_was_written_to_its_end(tmp_path):
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ValueError, match="no checkpoint"):
            last_whole_checkpoint(folder)
    states = {"checkpoint-9": "{}", "checkpoint-10": "{}", "checkpoint-11": '{"epoch": 1', "checkpoint-x": "{}"}
    for name, state in states.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-12").mkdir()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
