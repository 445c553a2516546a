"""Families with a token before and after each message."""


def turns(
    start: str, end: str, *, roles: str = "message['role']", prompt: str = "assistant"
) -> str:
    """Every message between two texts; `start` has ROLE in it."""
    opening = start.replace("ROLE", "' + " + roles + " + '")
    answer = start.replace("ROLE", prompt)
    return (
        "{%- for message in messages %}"
        "{{- '" + opening + "' + message['content'] + '" + end + "' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '" + answer + "' }}{%- endif %}"
    )


CHATML = turns("<|im_start|>ROLE\\n", "<|im_end|>\\n")

QWEN25 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant made in Hangzhou.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

QWEN2 = QWEN25.replace(" made in Hangzhou", "").replace(
    "message.role == 'user' or message.role == 'assistant'",
    "not (loop.first and message.role == 'system')",
)

LLAMA3 = """{%- for message in messages %}
    {%- set piece = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
        + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.first %}{%- set piece = bos_token + piece %}{%- endif %}
    {{- piece }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Always a system header with the dates; the first user message carries the tools, if there are any.
LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n' }}
{{- 'Today Date: ' + date_string + '\\n\\n' + system_message + '<|eot_id|>' }}
{%- if tools is not none %}
    {%- set first = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nYou may call these functions:\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) + '\\n\\n' }}{%- endfor %}
    {{- first + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' not in message %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

LLAMA32 = LLAMA31.replace("= '26 Jul 2024'", "= strftime_now('%d %b %Y')")

_GEMMA_TURNS = """{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + HEAD message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""

GEMMA = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{{- raise_exception('System role not supported') }}{%- endif %}\n"
    + _GEMMA_TURNS.replace("HEAD ", "")
)

# The system text goes before the first user message; content may be text or parts.
GEMMA3 = """{{- bos_token }}
{%- set head = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set head = messages[0]['content'] + '\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + (head if loop.first else '') }}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- else %}
        {%- for item in message['content'] %}
            {%- if item['type'] == 'image' %}{{- '<start_of_image>' }}
            {%- elif item['type'] == 'text' %}{{- item['text'] | trim }}{%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""

TEMPLATES = {
    "ChatML": CHATML,
    "Qwen1.5": "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}{%- endif %}" + CHATML,
    "Qwen2": QWEN2,
    "Qwen2.5": QWEN25,
    "Llama-3": LLAMA3,
    "Llama-3.1": LLAMA31,
    "Llama-3.2": LLAMA32,
    "Gemma": GEMMA,
    "Gemma-2": GEMMA.replace("not supported", "is not supported"),
    "Gemma-3": GEMMA3,
    "Phi-3": turns("<|ROLE|>\\n", "<|end|>\\n"),
    "Phi-3.5": "{%- for message in messages %}{%- if message['content'] %}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}"
    "{%- else %}{{- eos_token }}{%- endif %}",
    "Phi-4": turns("<|im_start|>ROLE<|im_sep|>", "<|im_end|>"),
    "Yi": CHATML,
    "SmolLM2": "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou are a small "
    "assistant<|im_end|>\\n' }}{%- endif %}" + CHATML,
    "InternLM2": "{{- bos_token }}" + CHATML,
    "StableLM": turns("<|ROLE|>\\n", "<|endoftext|>\\n"),
    "OLMo": "{{- bos_token }}" + turns("<|ROLE|>\\n", "\\n"),
    "Granite": turns("<|start_of_role|>ROLE<|end_of_role|>", "<|end_of_text|>\\n"),
    "Nemotron": turns("<extra_id_1>ROLE\\n", "\\n", prompt="Assistant"),
    "Hermes": "{{- bos_token }}" + CHATML,
    "EXAONE": "{%- if messages[0]['role'] != 'system' %}{{- '[|system|][|endofturn|]\\n' }}"
    "{%- endif %}"
    + turns("[|ROLE|]", "' + ('\\n' if message['role'] == 'user' else '[|endofturn|]\\n') + '"),
    "Zephyr": turns("<|ROLE|>\\n", "</s>\\n"),
}
