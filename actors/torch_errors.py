"""What torch says where a pass does not fit on a GPU, for processes that need not have torch."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


def first_words(error: BaseException) -> str:
    """Of its account: what was asked for and what there was, without the advice."""
    return ". ".join(str(error).split(". ")[:3])
