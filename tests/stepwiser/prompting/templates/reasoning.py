"""Families that think: blocks are cut from earlier answers, or written into the prompt."""

from tests.stepwiser.prompting.templates.headed import CHATML, LLAMA31

_CUT = "message['content'].split('</think>')[-1].lstrip('\\n')"

# Thinking of answers before the last question is cut; the last one is written with an empty block.
QWEN3 = (
    """{%- set ns = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = """
    + _CUT
    + """ %}
        {%- if loop.index0 > ns.last %}{%- set content = '<think>\\n\\n</think>\\n\\n' + content %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
)

QWQ = CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'").replace(
    "message['content']", "(" + _CUT + " if message['role'] == 'assistant' else message['content'])"
)

DEEPSEEK_R1 = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{{- message['content'] }}
    {%- elif message['role'] == 'user' %}{{- '<|User|>' + message['content'] }}
    {%- else %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1] %}
        {%- endif %}
        {{- '<|Assistant|>' + content + '<|end_of_sentence|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}
"""

SMOLLM3 = """{%- set mode = '/think' %}
{%- if enable_thinking is defined and not enable_thinking %}
    {%- set mode = '/no_think' %}
{%- endif %}
{%- set custom = messages[0].content if messages[0].role == 'system' else '' %}
{{- '<|im_start|>system\\n## Metadata\\n\\nToday Date: ' + strftime_now('%d %B %Y') + '\\n' }}
{{- 'Reasoning Mode: ' + mode + '\\n\\n' + custom + '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {%- if mode == '/think' %}{{- message.content.lstrip('\\n') + '<|im_end|>\\n' }}
            {%- else %}
                {{- '<think>\\n\\n</think>\\n' + message.content.lstrip('\\n') + '<|im_end|>\\n' }}
            {%- endif %}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if mode == '/no_think' %}{{- '<think>\\n\\n</think>\\n' }}{%- endif %}
{%- endif %}
"""

# The system text is one of two, by a variable; thinking is asked for in words.
GRANITE32 = """{%- set system = 'Today is ' + strftime_now('%B %d, %Y') + '. You are Granite.' %}
{%- if thinking %}{%- set system = system + ' Write your thoughts first.' %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}
{%- for message in messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] }}
    {{- '<|end_of_text|>\\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}
"""

EXAONE_DEEP = """{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '[|system|][|endofturn|]\\n' }}
    {%- endif %}
    {%- set content = message['content'] %}
    {%- if '</thought>' in content %}
        {%- set content = content.split('</thought>')[-1] %}
    {%- endif %}
    {{- '[|' + message['role'] + '|]' + content }}
    {{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[|assistant|]<thought>\\n' }}{%- endif %}
"""

TEMPLATES = {
    "Qwen3": QWEN3,
    "QwQ": QWQ,
    "DeepSeek-R1": DEEPSEEK_R1,
    "SmolLM3": SMOLLM3,
    "Granite-3.2": GRANITE32,
    "EXAONE-Deep": EXAONE_DEEP,
    "Nemotron-Nano": LLAMA31.replace(
        "system_message = ''", "system_message = 'detailed thinking on'"
    ),
}
"""All with their default variables."""

OPENED = {"QwQ": "<think>", "DeepSeek-R1": "<think>", "EXAONE-Deep": "<thought>"}
"""Those whose generation prompt opens the thinking."""
