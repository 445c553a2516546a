"""Chat templates in the forms of public model families, written from their documented behaviour.

Own words for the same effects: which roles a family knows, where it puts system text, what it cuts
from earlier answers, what its generation prompt begins with. By name in `CORPUS`.
"""

from tests.stepwiser.prompting.templates import bracketed, headed, lettered, parts, reasoning

CORPUS: dict[str, str] = {
    **headed.TEMPLATES,
    **bracketed.TEMPLATES,
    **lettered.TEMPLATES,
    **parts.TEMPLATES,
    **reasoning.TEMPLATES,
}
