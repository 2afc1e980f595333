"""Small chat templates of the forms that published models have, and a conversation for them.

Each writes tools, calls and results as a family of models does, in our own words. `output` cuts
what a model would have written out of a rendered conversation.
"""

from typing import Any, NamedTuple

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

QWEN = """{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '<tools>' }}{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\nA call is {"name": ..., "arguments": ...} in <tool_call></tool_call>.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role == 'assistant' and message.tool_calls %}
{{- '<|im_start|>assistant' }}{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
{%- for call in message.tool_calls %}{%- if call.function %}{%- set call = call.function %}{%- endif %}
{{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}
{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif message.role != 'system' or not tools %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""  # noqa: E501

THINKING = """{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- set content = message.content if message.content is string else '' %}
{{- '<|im_start|>assistant\\n' }}
{%- if message.reasoning_content is string %}
{{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}
{{- content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if tools %}{{- '{"name", "arguments"}' }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}
{%- elif open_thinking %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"""  # noqa: E501

LLAMA = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if tools is not none %}
{{- 'system\\nWrite {"name": function name, "parameters": dictionary of argument name and its value}.' }}
{%- for t in tools %}{{- '\\n' + (t | tojson(indent=4)) }}{%- endfor %}{{- '<|eot_id|>' }}{%- endif %}
{%- for message in messages %}
{%- if 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('one call at once') }}{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- 'assistant\\n{"name": "' + call.name + '", ' }}{{- '"parameters": ' }}
{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
{%- elif message.role == 'tool' %}{{- 'ipython\\n' + (message.content | tojson) + '<|eot_id|>' }}
{%- else %}{{- message.role + '\\n' + message['content'] | trim + '<|eot_id|>' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- 'assistant\\n' }}{%- endif %}"""  # noqa: E501

MISTRAL = """{{- bos_token }}{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools and loop.last %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.tool_calls is defined and message.tool_calls is not none %}
{{- '[TOOL_CALLS][' }}{%- for call in message.tool_calls %}
{%- set out = call.function | tojson %}{{- out[:-1] }}
{%- if call.id is not defined or call.id | length != 9 %}{{- raise_exception('nine letters') }}{%- endif %}
{{- ', "id": "' + call.id + '"}' }}{{- ']' + eos_token if loop.last else ', ' }}{%- endfor %}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS]{"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}' }}
{%- else %}{{- message.content + eos_token }}{%- endif %}{%- endfor %}"""  # noqa: E501

MISTRAL_NAMED = """{{- bos_token }}{%- for message in messages %}
{%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.tool_calls %}{{- message.content or '' }}
{%- for call in message.tool_calls %}
{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' + call.function.arguments | tojson }}
{%- endfor %}{{- eos_token }}
{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
{%- else %}{{- message.content + eos_token }}{%- endif %}{%- endfor %}{%- if tools %}{%- endif %}"""  # noqa: E501

DEEPSEEK = """{{- bos_token }}{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<｜User｜>' + message.content }}
{%- elif message.tool_calls is defined %}
{{- '<｜Assistant｜>' + (message.content or '') + '<｜tool▁calls▁begin｜>' }}
{%- for call in message.tool_calls %}{{- '\\n' if not loop.first else '' }}
{{- '<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```<｜tool▁call▁end｜>' }}
{%- endfor %}{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
{%- elif message.role == 'tool' %}{{- '<｜tool▁output▁begin｜>' + message.content + '<｜tool▁output▁end｜>' }}
{%- else %}{{- '<｜Assistant｜>' + message.content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\\n' }}{%- endif %}
{#- it begins inside, and ends with </think> #}"""  # noqa: E501

DEEPSEEK_31 = """{{- bos_token }}{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<｜User｜>' + message.content }}
{%- elif message.tool_calls is defined %}
{{- '<｜Assistant｜></think>' + (message.content or '') + '<｜tool▁calls▁begin｜>' }}
{%- for call in message.tool_calls %}
{{- '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' + call.function.arguments + '<｜tool▁call▁end｜>' }}
{%- endfor %}{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
{%- elif message.role == 'tool' %}{{- '<｜tool▁output▁begin｜>' + message.content + '<｜tool▁output▁end｜>' }}
{%- else %}{{- '<｜Assistant｜></think>' + message.content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{%- endif %}"""  # noqa: E501

GRANITE = """{%- if tools %}{{- '<|start_of_role|>tools<|end_of_role|>' + (tools | tojson(indent=4)) + '<|end_of_text|>\\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.tool_calls %}
{{- '<|start_of_role|>assistant<|end_of_role|><|tool_call|>' + (message.tool_calls | map(attribute='function') | list | tojson) + '<|end_of_text|>\\n' }}
{%- else %}{{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + message.content + '<|end_of_text|>\\n' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""  # noqa: E501

COMMAND = """{{- bos_token }}{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- for message in messages %}{%- if message.tool_calls %}
{{- '<|CHATBOT_TOKEN|><|START_THINKING|>' + message.reasoning_content + '<|END_THINKING|><|START_ACTION|>[\\n' }}
{%- for call in message.tool_calls %}
{{- '    {"tool_call_id": "' + loop.index0 | string + '", "tool_name": "' + call.function.name + '", "parameters": ' + (call.function.arguments | tojson) + '}' }}
{{- ',\\n' if not loop.last else '\\n' }}{%- endfor %}{{- ']<|END_ACTION|><|END_OF_TURN_TOKEN|>' }}
{%- else %}{{- '<|' + message.role | upper + '_TOKEN|>' + message.content + '<|END_OF_TURN_TOKEN|>' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|CHATBOT_TOKEN|>' }}{%- endif %}"""  # noqa: E501

PHI = """{%- if tools %}{{- '<|system|>Write functools[{"name": ..., "arguments": ...}, ...]' + (tools | tojson) + '<|end|>' }}{%- endif %}
{%- for message in messages %}{{- '<|' + message.role + '|>' }}
{%- if message.tool_calls %}{{- 'functools' + (message.tool_calls | map(attribute='function') | list | tojson) }}
{%- else %}{{- message.content }}{%- endif %}{{- '<|end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""  # noqa: E501

GEMMA = """{{- bos_token }}{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{%- if message.content is string %}{{- message.content | trim }}
{%- else %}{%- for item in message.content %}{%- if item.type == 'text' %}{{- item.text | trim }}{%- endif %}{%- endfor %}{%- endif %}
{{- '<end_of_turn>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""  # noqa: E501

PLAIN = """{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""  # noqa: E501


class Family(NamedTuple):
    """A template, the formats that it shows, and the marks around an assistant's output."""

    source: str
    calls: str = ""
    reasoning: str = ""
    begin: str = ""
    end: str = ""
    takes_text: bool = False
    """True if arguments of a call have to be text for transformers."""
    num_calls: int = 2
    """Most calls of one message."""


FAMILIES = {
    "qwen": Family(QWEN, "hermes", "", "<|im_start|>assistant", "<|im_end|>"),
    "thinking": Family(THINKING, "hermes", "think", "<|im_start|>assistant\n", "<|im_end|>"),
    "llama": Family(LLAMA, "llama", "", "assistant\n", "<|eot_id|>", num_calls=1),
    "mistral": Family(MISTRAL, "mistral", "", "[/INST]", "</s>"),
    "mistral_named": Family(MISTRAL_NAMED, "mistral_named", "", "[/INST]", "</s>"),
    "deepseek": Family(
        DEEPSEEK,
        "deepseek_v3",
        "think",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        takes_text=True,
    ),
    "deepseek_3.1": Family(
        DEEPSEEK_31,
        "deepseek_v3.1",
        "think",
        "<｜Assistant｜></think>",
        "<｜end▁of▁sentence｜>",
        takes_text=True,
    ),
    "granite": Family(GRANITE, "granite", "", "assistant<|end_of_role|>", "<|end_of_text|>"),
    "command": Family(COMMAND, "command", "command", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "phi": Family(PHI, "functools", "", "<|assistant|>", "<|end|>"),
    "gemma": Family(GEMMA),
    "plain": Family(PLAIN),
}
WITH_CALLS = {name: family for name, family in FAMILIES.items() if family.calls}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a <town> & its lakes",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["town"],
            },
        },
    }
]


def make_call(arguments: Any, number: int = 0, name: str = "get_weather") -> dict[str, Any]:
    """Return a call of OpenAI's form."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def cut_output(rendered: str, family: Family) -> str:
    """Return the last text of an assistant in a rendered conversation."""
    return rendered.rpartition(family.begin)[2].partition(family.end)[0]
