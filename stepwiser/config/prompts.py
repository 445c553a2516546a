"""The prompts of the method, as configuration.

The defaults are for instruction-tuned LLMs. Each template is the content of one user message; the
model's own chat template does the rest, or `chat_template` in its place.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

TemplateValue = bool | int | float | str | list[Any]

PLAIN = """Solve the problem below. Work through it step by step and put the final answer in \
\\boxed{{}}.

{problem}"""

POLICY = """Solve the problem below. Reason step by step and write every coherent piece of \
reasoning inside its own <chunk> and </chunk> tags: one purpose a chunk, and a new chunk whenever \
the focus changes. Put the final answer in \\boxed{{}}.

{problem}"""

SEGMENT = """Below is a solution. Mark its reasoning units by inserting <chunk> before and \
</chunk> after each of them.

A unit has a single purpose (setting something up, one calculation, one case, one check). It is \
not interrupted: where the focus moves to something new, a new unit begins. Going from solving to \
verifying, or into a side remark, also begins a new unit.

Copy the solution character for character, mistakes and blank lines included. Insert nothing but \
the tags, leave no text outside them, and say nothing else.

{response}"""

JUDGE = """You check one step of a solution at a time.

### Problem
{problem}

### Reasoning so far
{history}

### New step
{chunk}

Decide whether the new step is a sound move towards the right answer. First say what the step is \
trying to do. Then check its logic, its method and every calculation against the problem and the \
reasoning so far. End with \\boxed{{Positive}} if the step holds, or \\boxed{{Negative}} if it \
does not."""

VERDICT = """You check one step of a solution at a time.

### Problem
{problem}

### Reasoning so far
{history}

### New step
{chunk}

Decide whether the new step is a sound move towards the right answer. Write \\boxed{{Positive}} if \
the step holds, or \\boxed{{Negative}} if it does not, and nothing else."""

DISCRIMINATIVE_FIRST = """{problem}

{chunk}"""

_FIELDS = {
    "plain": {"problem"},
    "policy": {"problem"},
    "segment": {"response"},
    "judge": {"problem", "history", "chunk"},
    "verdict": {"problem", "history", "chunk"},
    "discriminative_first": {"problem", "chunk"},
    "discriminative_next": {"chunk"},
}


_OURS = frozenset(
    {"messages", "add_generation_prompt", "continue_final_message", "conversation", "chat_template"}
    | {"tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs", "bos_token", "eos_token"}
)
"""What a chat template is rendered with in any case, or what the rendering itself is told."""


class PromptConfig(BaseModel):
    """Templates in `str.format` notation; a literal brace is doubled."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    steps: Literal["chunks", "paragraphs"] = Field(
        "chunks",
        description="What a step is: self-segmented chunks, or paragraphs (the usual baseline,"
        " which needs no segment stage).",
    )
    plain: str = Field(PLAIN, description="Asks the base policy for a solution.")
    policy: str = Field(POLICY, description="Asks the chunk-tuned policy for a solution.")
    segment: str = Field(
        SEGMENT,
        description="Asks the segmenter to insert chunk tags.",
        examples=["{response}\n\nThe same with <chunk> and </chunk> around each step:"],
    )
    judge: str = Field(JUDGE, description="Asks the judge about one chunk.")
    verdict: str = Field(
        VERDICT, description="In place of `judge` where only a bare verdict is rewarded."
    )
    discriminative_first: str = Field(
        DISCRIMINATIVE_FIRST, description="First user turn of the discriminative judge."
    )
    discriminative_next: str = Field(
        "{chunk}", description="Every further user turn.", examples=["Next step: {chunk}"]
    )
    empty_history: str = Field("(none)", description="Stands for the history of the first chunk.")
    history_separator: str = Field("\n\n", description="Between the chunks of the history.")
    system: str | None = Field(
        None,
        description="System message before every user message. Null: none of ours; a chat template"
        " may have one of its own.",
        examples=["Be brief."],
    )
    chat_template: str | None = Field(
        None,
        description="Jinja file in place of the chat template of every model of the run. Read once:"
        " the run directory keeps its text, and another text is another run.",
        examples=["mine.jinja"],
    )
    template_variables: dict[str, TemplateValue] = Field(
        default_factory=dict,
        description="Variables that chat templates read, such as enable_thinking or date_string."
        " strftime_now: 2025-07-26 is the day of templates that ask for today.",
        examples=["prompts.template_variables.enable_thinking=false"],
    )

    def __hash__(self) -> int:
        # Equal prompts are one key of a cache; the mapping in them could not be hashed.
        return hash(self.model_dump_json())

    @field_validator("system")
    @classmethod
    def _says_something(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError("is empty: leave it out, or set null")
        return text

    @field_validator("chat_template")
    @classmethod
    def _is_read(cls, value: str | None) -> str | None:
        """Of a path, the text of the file: on other machines, and tomorrow, it is the same."""
        if value is None or "{{" in value or "{%" in value:
            return value
        path = Path(value).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot be read: {error}; give the path of a Jinja file") from error
        if "{{" not in text and "{%" not in text:
            raise ValueError("is no Jinja template: it has neither {{ nor {%")
        return text

    @field_validator("template_variables", mode="before")
    @classmethod
    def _are_ours_to_set(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, value in values.items():
            if name in _OURS:
                raise ValueError(f"{name} is not a variable to set: it is made for every prompt")
            if value is None or isinstance(value, dict):
                raise ValueError(f"{name}={value!r}: a value is a text, a number, true, or a list")
        # YAML reads 2025-07-26 as a day; templates want its text.
        return {k: v.isoformat() if isinstance(v, date) else v for k, v in values.items()}

    @field_validator(*_FIELDS)
    @classmethod
    def _has_its_fields(cls, template: str, info: object) -> str:
        name = info.field_name  # type: ignore[attr-defined]
        values = dict.fromkeys(_FIELDS[name], "x")
        try:
            template.format(**values)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"template is not valid: {error!r}; it may use {sorted(values)} in single braces,"
                " and every other brace is doubled"
            ) from error
        missing = [field for field in values if "{" + field + "}" not in template]
        if missing:
            raise ValueError(f"template lacks {missing}; write each as {{name}}")
        return template
