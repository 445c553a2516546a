"""Templates that read a message's content as a list of parts, and such that lose or change it."""

IDEFICS3 = """{{- '<|im_start|>' }}
{%- for message in messages %}
    {{- message['role'] | capitalize }}
    {%- if message['content'][0]['type'] == 'image' %}{{- ':' }}{%- else %}{{- ': ' }}{%- endif %}
    {%- for line in message['content'] %}
        {%- if line['type'] == 'text' %}{{- line['text'] }}
        {%- elif line['type'] == 'image' %}{{- '<image>' }}{%- endif %}
    {%- endfor %}
    {{- '<end_of_utterance>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}
"""

SMOLVLM = IDEFICS3.replace("'<end_of_utterance>\\n'", "'<end_of_utterance>' + '\\n'")

# Strings pass, as a loop over letters that have no type: nothing of them is written.
LLAVA = """{%- for message in messages %}
    {%- if message['role'] != 'system' %}{{- message['role'].upper() + ': ' }}{%- endif %}
    {%- for part in message['content'] if part['type'] == 'image' %}{{- '<image>\\n' }}{%- endfor %}
    {%- for part in message['content'] if part['type'] == 'text' %}
        {{- part['text'] + ' ' }}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}
"""

TEMPLATES = {"Idefics3": IDEFICS3, "SmolVLM": SMOLVLM, "LLaVA": LLAVA}

REFUSED = {
    "drops the user": (
        "{%- for m in messages if m['role'] == 'system' %}{{- m['content'] }}{%- endfor %}",
        "does not write the user's message",
    ),
    "escapes": (
        "{%- for m in messages %}{{- m['content'] | tojson }}{%- endfor %}",
        "does not write the user's message",
    ),
    "one turn only": (
        "{%- if messages | length > 1 %}{{- raise_exception('One question only') }}{%- endif %}"
        "{{- messages[0]['content'] }}",
        "One question only.*two user messages",
    ),
    "no earlier answers": (
        "{%- for m in messages if m['role'] == 'user' %}{{- m['content'] }}{%- endfor %}",
        "does not write an earlier answer",
    ),
    "only the first question": (
        "{{- messages[0]['content'] }}{%- for m in messages if m['role'] == 'assistant' %}"
        "{{- m['content'] }}{%- endfor %}",
        "does not write a second user message",
    ),
    "not a template": ("{%- for m in messages %}{{- m['content'] }}", "TemplateSyntaxError"),
    "wants a variable": ("{{- persona.name + messages[0]['content'] }}", "persona"),
    "wants a tool": (
        "{%- if tools is not defined or not tools %}{{- raise_exception('Give me tools') }}"
        "{%- endif %}{{- messages[0]['content'] }}",
        "Give me tools",
    ),
}
"""With what the refusal says of each."""
