"""Settings of where problems come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stepwiser.config.addresses import LocalPlace
from stepwiser.config.base import Problems, Section, Seed, Unit


class DataConfig(Section):
    """Where problems with a known final answer come from."""

    source: LocalPlace = Field(
        "embedded",
        description="`embedded`, a .jsonl/.json/.csv/.tsv/.parquet file, a known name with its "
        "columns (gsm8k, math, numina-math, deepmath, openr1-math, aime), or a dataset on the Hub "
        "(`org/name`, or `org/name@revision`).",
    )
    subset: str | None = Field(None, description="Configuration name of a Hub dataset.")
    split: str = Field("train", description="Split of a Hub dataset.", examples=["test"])
    like: Literal["gsm8k", "math", "numina-math", "deepmath", "openr1-math", "aime"] | None = Field(
        None, description="Known data set whose columns a file of one's own has.", examples=["aime"]
    )
    problem_column: str = Field(
        "problem",
        description="Column that holds the problem's text, or messages whose one user turn it is.",
    )
    answer_column: str = Field(
        "answer",
        description="Column that holds the reference answer; a path (`a.b`) into a nested one.",
        examples=["reward_model.ground_truth"],
    )
    answer_delimiter: str | None = Field(
        None, description="Keep only what follows the last such string (GSM8K: `####`)."
    )
    limit: Problems = Field(1000, description="How many problems to take, after shuffling.")
    offset: Annotated[int, Unit("problems")] = Field(
        0, ge=0, description="Problems to skip after shuffling.", examples=[1000]
    )
    skip_bad_rows: bool = Field(
        False,
        description="Leave rows out that cannot be read, count them and list them in rejects/; "
        "else the first one ends the start (`--skip-bad-rows`).",
    )
    seed: Seed = Field(0, description="Seed of the shuffle, or of the embedded generator.")
