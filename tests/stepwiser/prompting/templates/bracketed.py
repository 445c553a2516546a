"""Families that mark the question and let the answer follow it: Llama 2, Mistral."""

_ALTERNATE = """{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/...') }}
    {%- endif %}
{%- endfor %}
"""

_SPLIT = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
"""

LLAMA2 = (
    _SPLIT
    + _ALTERNATE
    + """{%- for message in messages %}
    {%- set content = message['content'] | trim %}
    {%- if loop.first and system_message %}
        {%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + content %}
    {%- endif %}
    {%- if message['role'] == 'user' %}{{- bos_token + '[INST] ' + content + ' [/INST]' }}
    {%- else %}{{- ' ' + content + ' ' + eos_token }}{%- endif %}
{%- endfor %}
"""
)

MISTRAL_V1 = (
    "{{- bos_token }}\n"
    + _ALTERNATE
    + """{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{- ' [INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}
{%- endfor %}
"""
)

# The system text stands in the last user message, wherever that is.
MISTRAL_V3 = (
    _SPLIT
    + "{{- bos_token }}\n"
    + _ALTERNATE
    + """{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
)

MISTRAL_V7 = """{%- set today = strftime_now('%Y-%m-%d') %}
{%- set default = 'You are a model. The current date is ' + today + '.' %}
{{- bos_token }}
{%- if messages[0]['role'] != 'system' %}
    {{- '[SYSTEM_PROMPT]' + default + '[/SYSTEM_PROMPT]' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- if message['content'] is string %}
            {{- '[INST]' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST]' }}
            {%- for block in message['content'] %}
                {%- if block['type'] == 'text' %}{{- block['text'] }}
                {%- else %}{{- '[IMG]' }}{%- endif %}
            {%- endfor %}
            {{- '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('Only user, system and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""

TEMPLATES = {
    "Llama-2": LLAMA2,
    "Mistral-v1": MISTRAL_V1,
    "Mistral-v3": MISTRAL_V3,
    "Mistral-v7": MISTRAL_V7,
    "Mixtral": MISTRAL_V1.replace("' [INST] '", "'[INST] '"),
}
