"""Chat templates: Jinja, in a sandbox, rendered as transformers renders them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

MAX_TEMPLATE_LEN = 1 << 20
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
# Ends in a space, so that one can see whether the template trims what it is given.
_CONTINUE_MARK = "AUTODEPLOY_CONTINUES_HERE "


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks an assistant's words for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's interface)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: object) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace attribute may not begin with an underscore: {name!r}")


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)` of a template."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: object, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes HTML, which would change what the model reads.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


def _plain(value: Any) -> Any:
    """A copy made of plain JSON types: a checkpoint's template shall meet no object with methods of its own."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    for base in (str, int, float):  # subclasses, such as an enum's members, become their plain value
        if isinstance(value, base):
            return base.__str__(value) if base is str else base(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump())
    return f"<{type(value).__name__}>"


def _check_messages(messages: object) -> list[dict[str, Any]]:
    """Messages as plain dicts; keys whose value is None are dropped, as a template takes them for absent ones."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"[chat] messages: expected a list of dicts (role, content), found {type(messages).__name__}")
    if not messages:
        raise ValueError("[chat] messages: expected at least one message, found none")
    checked = []
    for index, message in enumerate(_plain(list(messages))):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"[chat] messages[{index}]: expected a dict with a role, found {messages[index]!r}")
        kept = {key: value for key, value in message.items() if value is not None}
        reasoning = next((kept[key] for key in _REASONING_KEYS if key in kept), None)
        if reasoning is not None:
            kept = {"thinking": reasoning} | kept | {"reasoning_content": reasoning}
        checked.append(kept)
    return checked


class ChatTemplate:
    """A model's chat template, or several by name ("default", "tool_use").

    special_tokens: variables such as bos_token that every template may read.
    """

    def __init__(self, templates: str | Mapping[str, str], special_tokens: Mapping[str, str]):
        self._sources = {"default": templates} if isinstance(templates, str) else dict(templates)
        self._special_tokens = dict(special_tokens)
        self._compiled: dict[str, jinja2.Template] = {}
        for name, source in self._sources.items():
            if len(source) > MAX_TEMPLATE_LEN:
                raise ValueError(f"[chat] template {name!r} is longer than {MAX_TEMPLATE_LEN} characters")

    @property
    def sources(self) -> dict[str, str]:
        """Template texts by name."""
        return dict(self._sources)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt text of a conversation; it holds its own special tokens, so encode it without adding any.

        tools: JSON schemas of functions. documents: dicts for templates that know retrieval.
        add_generation_prompt: begin the assistant's turn at the end; default yes, unless the last message goes on.
        continue_final_message: leave the last message open, so that the model goes on with it.
        variables: whatever else the template reads; they override special tokens of the same name.
        Raises ValueError, with the template's own words where it refuses the conversation.
        """
        chat = _check_messages(messages)
        if tools is not None and not all(isinstance(tool, Mapping) for tool in tools):
            raise ValueError("[chat] tools: expected JSON schemas (dicts), found something else")
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        if continue_final_message and add_generation_prompt:
            raise ValueError("[chat] continue_final_message and add_generation_prompt exclude each other; set one")
        final = self._open_final_message(chat) if continue_final_message else ""
        name = self._pick(tools)
        try:
            rendered = self._template(name).render(
                messages=chat,
                tools=_plain(None if tools is None else list(tools)),
                documents=_plain(None if documents is None else list(documents)),
                add_generation_prompt=add_generation_prompt,
                **(self._special_tokens | _plain(variables)),
            )
        except jinja2.exceptions.TemplateError as error:
            raise ValueError(f"[chat] the model's template refuses this conversation: {error}") from None
        except (TypeError, KeyError, AttributeError, IndexError, ValueError, RecursionError) as error:
            raise ValueError(f"[chat] the model's template fails on this conversation: {error!r}") from None
        return self._cut_at_mark(rendered, final) if continue_final_message else rendered

    def _pick(self, tools: object) -> str:
        if tools is not None and "tool_use" in self._sources:
            return "tool_use"
        if "default" in self._sources:
            return "default"
        raise ValueError(f"[chat] expected a default template, found {sorted(self._sources)}; give chat_template")

    def _template(self, name: str) -> jinja2.Template:
        if name not in self._compiled:
            try:
                self._compiled[name] = _environment().from_string(self._sources[name])
            except jinja2.exceptions.TemplateError as error:
                raise ValueError(
                    f"[chat] the template {name!r} is not valid Jinja ({error}); give chat_template"
                ) from None
        return self._compiled[name]

    @staticmethod
    def _open_final_message(chat: list[dict[str, Any]]) -> str:
        """Put a mark at the end of the last message's text; returns that text."""
        content = chat[-1].get("content")
        if isinstance(content, str):
            chat[-1]["content"] = content + _CONTINUE_MARK
            return content
        for block in reversed(content if isinstance(content, list) else []):
            if isinstance(block, dict) and isinstance(block.get("text"), str):
                text = block["text"]
                block["text"] = text + _CONTINUE_MARK
                return text
        raise ValueError("[chat] continue_final_message: the last message has no text to go on with")

    @staticmethod
    def _cut_at_mark(rendered: str, final: str) -> str:
        begin = rendered.rfind(_CONTINUE_MARK.strip())
        if begin < 0 or final.strip() not in rendered:
            raise ValueError("[chat] continue_final_message: the template does not keep the last message as it is")
        keeps_spaces = rendered.startswith(_CONTINUE_MARK, begin)
        return rendered[:begin] if keeps_spaces else rendered[:begin].rstrip()


def read_chat_template(artifact_dir: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template of an artifact: chat_template.jinja, and what tokenizer_config.json names (one text, or several
    by name). None where the model has none. Raises ValueError where a file cannot be read.
    """
    templates: dict[str, str] = {}
    try:
        config_path = artifact_dir / "tokenizer_config.json"
        if config_path.is_file():
            field = json.loads(config_path.read_text(encoding="utf-8")).get("chat_template")
            if isinstance(field, str):
                templates["default"] = field
            elif isinstance(field, dict):
                templates |= {str(name): str(source) for name, source in field.items()}
            elif isinstance(field, list):
                templates |= {str(entry["name"]): str(entry["template"]) for entry in field}
        if (path := artifact_dir / "chat_template.jinja").is_file():
            templates["default"] = path.read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"[chat] a chat template of {artifact_dir} cannot be read: {error}; compile again") from None
    return ChatTemplate(templates, special_tokens) if templates else None
