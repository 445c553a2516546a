"""Settings of judges that a run did not train, to compare with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from stepwiser.config.addresses import LocalPlace
from stepwiser.config.base import Fraction, Section, Unit

_QWEN = "name: qwen, kind: qwen_prm, model: Qwen2.5-Math-PRM-7B"
_CRITIC = "name: critic, kind: endpoint, model: m, url: https://host/v1"


def _with(judge: str) -> str:
    return f"evaluate.judges='[{{{judge}}}]'"


class JudgeConfig(Section):
    """One judge from elsewhere, and how its score becomes a verdict."""

    name: str = Field(
        description="What tables call it.",
        pattern=r"^[A-Za-z0-9][\w.-]*$",
        max_length=60,
        examples=[_with(_QWEN)],
    )
    kind: Literal[
        "generative",
        "endpoint",
        "token_classification",
        "qwen_prm",
        "math_shepherd",
        "rlhflow",
        "skywork",
    ] = Field(
        description="A model that is asked by the run's own judge prompt (`generative`), the same "
        "behind an OpenAI-compatible URL (`endpoint`), or a step scorer of a public kind: "
        "TRL's PRM with one or two labels, `<extra_0>` and two layers, `ки` with + and -, + as the "
        "answer of a chat, a value head.",
        examples=[_with(_QWEN)],
    )
    model: LocalPlace = Field(
        description="Named like policy_model; for `endpoint` the name that the server knows.",
        examples=[_with(_QWEN)],
    )
    threshold: Fraction | Literal["chosen"] = Field(
        0.5,
        description="Score from which a step is Positive (step scorers): a number, 0.5 being the "
        "predicted label, or `chosen` for the best one on `evaluate.threshold_set`.",
        examples=[_with(f"{_QWEN}, threshold: 0.4")],
    )
    mark: str | None = Field(
        None,
        description="What closes a step, where a step scorer was trained with another mark than "
        "its kind's.",
        examples=[_with("name: prm, kind: token_classification, model: my-prm, mark: <step>")],
    )
    url: str | None = Field(
        None, description="Base URL of an `endpoint`.", examples=[_with(_CRITIC)]
    )
    key_variable: str = Field(
        "OPENAI_API_KEY",
        description="Environment variable with the key of an `endpoint`.",
        examples=[_with(f"{_CRITIC}, key_variable: MY_KEY")],
    )
    concurrency: Annotated[int, Field(gt=0), Unit("requests")] = Field(
        16,
        description="Requests at once to an `endpoint`.",
        examples=[_with(f"{_CRITIC}, concurrency: 4")],
    )
    input_price: Annotated[float, Field(ge=0), Unit("price of a million tokens")] = Field(
        0.0,
        description="What an `endpoint` takes for what it reads.",
        examples=[_with(f"{_CRITIC}, input_price: 0.5")],
    )
    output_price: Annotated[float, Field(ge=0), Unit("price of a million tokens")] = Field(
        0.0,
        description="What an `endpoint` takes for what it writes.",
        examples=[_with(f"{_CRITIC}, output_price: 2")],
    )

    @property
    def scores_steps(self) -> bool:
        """Whether it is a step scorer, which writes nothing."""
        return self.kind not in ("generative", "endpoint")

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name in ("start", "start-forced", "warm-start", "judge", "judge-discriminative"):
            raise ValueError(f"{name} is a judge of every run: choose another name")
        return name

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> JudgeConfig:
        # Not those that were set: a run directory's copy says every key.
        kinds = type(self).model_fields
        given = {name for name, key in kinds.items() if getattr(self, name) != key.default}
        endpoint = {"url", "key_variable", "concurrency", "input_price", "output_price"}
        if self.kind == "endpoint" and not self.url:
            raise ValueError(f"{self.name}: kind=endpoint needs a url, as http://host:8000/v1")
        wrong = set() if self.kind == "endpoint" else given & endpoint
        wrong |= set() if self.scores_steps else given & {"threshold", "mark"}
        if wrong:
            raise ValueError(
                f"{self.name}: {', '.join(sorted(wrong))} says nothing about kind={self.kind}: "
                "leave it out"
            )
        if self.mark is not None and self.kind == "rlhflow":
            raise ValueError(f"{self.name}: kind=rlhflow answers with +: leave mark out")
        return self


class CriticConfig(Section):
    """A model that reads labelled chunks: those whose label it contradicts are left out, and where
    it gives no verdict the label stays."""

    model: LocalPlace | None = Field(
        None,
        description="Named like policy_model, or as an endpoint's server knows it; null for none.",
        examples=["Qwen/Qwen2.5-7B-Instruct"],
    )
    kind: Literal["generative", "endpoint"] = Field(
        "generative",
        description="Asked by the run's own judge prompt on its engines, or behind an "
        "OpenAI-compatible URL.",
    )
    votes: Annotated[int, Field(gt=0), Unit("answers")] = Field(
        1, description="Answers on a chunk, whose majority is the verdict.", examples=[3]
    )
    url: str | None = Field(
        None,
        description="Base URL of an `endpoint`.",
        examples=["https://host/v1"],
    )
    key_variable: str = Field(
        "OPENAI_API_KEY",
        description="Environment variable with the key of an `endpoint`.",
        examples=["MY_KEY"],
    )
    concurrency: Annotated[int, Field(gt=0), Unit("requests")] = Field(
        16, description="Requests at once to an `endpoint`.", examples=[4]
    )

    @property
    def on_engines(self) -> bool:
        """Whether the run's own engines hold it."""
        return self.model is not None and self.kind == "generative"

    @property
    def judge(self) -> JudgeConfig:
        """The same as a judge from elsewhere; there must be a model."""
        assert self.model is not None
        return JudgeConfig(
            name="critic",
            kind=self.kind,
            model=self.model,
            url=self.url,
            key_variable=self.key_variable,
            concurrency=self.concurrency,
        )

    @model_validator(mode="after")
    def _endpoint_has_an_address(self) -> CriticConfig:
        if self.model is not None and (self.kind == "endpoint") != (self.url is not None):
            raise ValueError(
                f"label.critic.kind={self.kind} and label.critic.url={self.url}: an endpoint needs "
                "a URL (label.critic.url=https://host/v1), and nothing else takes one"
            )
        return self
