"""Families that write the roles as words, and those with tokens for whole turns."""


def words(user: str, answer: str, end: str, *, head: str = "", last: str = "") -> str:
    """`user` and `answer` stand before the messages, `end` after an answer, `head` at the start."""
    return (
        "{%- if messages[0]['role'] == 'system' %}{%- set loop_messages = messages[1:] %}"
        "{{- '" + head.split("|")[0] + "' + messages[0]['content'] + '\\n\\n' }}"
        "{%- else %}{%- set loop_messages = messages %}{{- '" + head.replace("|", "") + "' }}"
        "{%- endif %}"
        "{%- for message in loop_messages %}"
        "{%- if message['role'] == 'user' %}{{- '" + user + "' + message['content'] + '" + last
        + "' }}{%- elif message['role'] == 'assistant' %}{{- '" + answer
        + "' + message['content'] + '" + end + "' }}{%- endif %}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '" + answer + "' }}{%- endif %}"
    )  # fmt: skip


COMMAND_R = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set loop_messages = messages[1:] %}
    {%- set system_message = messages[0]['content'] %}
{%- else %}
    {%- set loop_messages = messages %}
    {%- set system_message = false %}
{%- endif %}
{%- if system_message != false %}
    {{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}
{%- endif %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/...') }}
    {%- endif %}
    {%- set role = 'USER' if message['role'] == 'user' else 'CHATBOT' %}
    {{- '<|START_OF_TURN_TOKEN|><|' + role + '_TOKEN|>' + message['content'].strip() }}
    {{- '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif %}
"""

# Every question has its number.
CHATGLM2 = """{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '[Round ' ~ (loop.index0 // 2 + 1) ~ ']\\n\\nQ: ' + message['content'] + '\\n\\nA:' }}
    {%- else %}
        {{- ' ' + message['content'] + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
"""

GLM4 = (
    "[gMASK]<sop>{%- for item in messages %}{{- '<|' + item['role'] + '|>\\n' + item['content'] }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

BAICHUAN = (
    "{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{- '<reserved_106>' + message['content'] }}{%- elif message['role'] == 'assistant' %}"
    "{{- '<reserved_107>' + message['content'] }}{%- else %}{{- message['content'] }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<reserved_107>' }}{%- endif %}"
)

JAMBA = (
    "{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{{- '<|bom|><|system|> ' + message['content'] + '<|eom|>' }}{%- else %}"
    "{{- '<|bom|><|' + message['role'] + '|> ' + message['content'] + '<|eom|>' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|bom|><|assistant|>' }}{%- endif %}"
)

OPENCHAT = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- 'GPT4 Correct ' + message['role'].title() + ': ' + message['content']"
    " + '<|end_of_turn|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'GPT4 Correct Assistant:' }}{%- endif %}"
)

DEEPSEEK_V3 = """{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{%- set ns.system = message['content'] %}{%- endif %}
{%- endfor %}
{{- bos_token + ns.system }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{- '<|User|>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|Assistant|>' + message['content'] + '<|end_of_sentence|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|>' }}{%- endif %}
"""

TEMPLATES = {
    "Vicuna": words(
        "USER: ", "ASSISTANT: ", "</s>\\n", head="|A chat with an assistant. ", last=" "
    ),
    "Alpaca": words(
        "### Instruction:\\n",
        "### Response:\\n",
        "\\n\\n",
        head="|Below is a task.\\n\\n",
        last="\\n\\n",
    ),
    "Falcon": words("User: ", "Falcon:", "\\n", last="\\n"),
    "MiniCPM": words("<user>", "<AI>", ""),
    "Solar": words("### User:\\n", "### Assistant:\\n", "\\n\\n", last="\\n\\n"),
    "Command-R": COMMAND_R,
    "Aya": COMMAND_R.replace("{{- bos_token }}", ""),
    "ChatGLM2": CHATGLM2,
    "GLM-4": GLM4,
    "Baichuan": BAICHUAN,
    "Jamba": JAMBA,
    "OpenChat": OPENCHAT,
    "Starling": OPENCHAT.replace("{{- bos_token }}", "{{- bos_token + bos_token }}"),
    "DeepSeek-V3": DEEPSEEK_V3,
}
