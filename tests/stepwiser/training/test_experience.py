import numpy as np
import pytest

from stepwiser.errors import UserError
from stepwiser.training.experience import Experience, ExperienceBatch, TokenExamples


def _experience(prompt, response, logprobs=None):
    return Experience(
        prompt_ids=prompt,
        response_ids=response,
        advantage=0.5,
        reward=1.0,
        group=0,
        weight_version=3,
        engine_logprobs=logprobs,
    )


def test_columns_give_the_sequences_back():
    batch = ExperienceBatch.from_experiences(
        [_experience([1, 2], [3], [-0.5]), _experience([4], [5, 6], [-1.0, -2.0])]
    )
    assert len(batch) == 2
    assert batch.prompt(1).tolist() == [4]
    assert batch.response(1).tolist() == [5, 6]
    assert batch.logprobs(1).tolist() == [-1.0, -2.0]
    assert batch.lengths.tolist() == [3, 3]
    assert batch.weight_versions.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("experiences", "message"),
    [
        ([_experience([1], [])], "0 response tokens"),
        ([_experience([1], [2], [-1.0, -1.0])], "2 engine log-probs"),
        ([_experience([1], [2], [-1.0]), _experience([1], [2])], "1 of 2 sequences"),
    ],
)
def test_broken_sequences_are_named(experiences, message):
    with pytest.raises(ValueError, match=message):
        ExperienceBatch.from_experiences(experiences)


def test_examples_survive_parquet(tmp_path):
    examples = TokenExamples.from_pairs([([1, 2, 3], [False, True, True]), ([4, 5], [0, 1])])
    examples.write_parquet(tmp_path / "examples.parquet")
    back = TokenExamples.read_parquet(tmp_path / "examples.parquet")
    assert back.lengths.tolist() == [3, 2]
    assert [mask.tolist() for _, mask in map(back.example, range(2))] == [[0, 1, 1], [0, 1]]
    np.testing.assert_array_equal(back.token_ids, examples.token_ids)


def test_an_example_that_teaches_nothing_is_named():
    with pytest.raises(ValueError, match="example 1 has no token to learn"):
        TokenExamples.from_pairs([([1, 2], [0, 1]), ([1, 2], [1, 0])])


def test_a_parquet_file_of_something_else_is_named(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="loss_mask, token_ids"):
        TokenExamples.read_parquet(tmp_path / "x.parquet")
