import os
import resource
import signal
import time
from pathlib import Path

import pytest

from tunesmith.data.template import MAX_TEMPLATE_BYTES, Ask, Failure, Template, text_of
from tunesmith.errors import DataError, ModelError, Unsafe, Where

HELLO = [{"role": "user", "content": "hello"}]


def rendered(text: str, messages=HELLO, tools=(), **variables: str):
    return Template(text, variables, "t.jinja").render(messages, tools, [Ask(len(messages), True)])[0]


def test_renders_like_transformers():
    from transformers.utils.chat_template_utils import render_jinja_template

    text = (
        "{{ bos_token }}{% for m in messages %}\n"
        "  {% if loop.index0 > 5 %}{% break %}{% endif %}\n"
        "{{ m.role | upper }}: {{ m['content'] | trim }} {{ m | tojson(indent=1) }}\n"
        "{% generation %}x{% endgeneration %}{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}\n"
        "{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}go{% endif %}"
    )
    messages = [{"role": "user", "content": " <é> & 'x' "}, {"role": "assistant", "content": "\n"}] * 4
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": [None, True, 1.5]}}}]
    for given in (None, tools):
        theirs, _ = render_jinja_template(
            [messages], tools=given, chat_template=text, add_generation_prompt=True, bos_token="<s>"
        )
        assert rendered(text, messages, given or (), bos_token="<s>") == theirs[0]


def test_prefixes_in_one_exchange():
    template = Template("{% for m in messages %}{{ m.content }};{% endfor %}{{ add_generation_prompt }}", {}, "t")
    messages = [{"role": "user", "content": letter} for letter in "abc"]
    asks = [Ask(3, False), Ask(1, True), Ask(0, False)]
    assert template.render(messages, (), asks) == ["a;b;c;False", "a;True", "False"]


def test_a_template_that_refuses_is_a_data_error_with_its_own_words():
    answer = rendered("{{ raise_exception('roles must alternate') }}")
    assert answer == Failure("refused", "roles must alternate")
    with pytest.raises(DataError, match=r"E064.*roles must alternate") as caught:
        text_of(answer, Where("a.jsonl", 3))
    assert caught.value.diagnostic.where == Where("a.jsonl", 3)


def test_a_mistake_in_a_template_is_told_and_the_process_lives_on():
    template = Template("{{ messages[0].content + 1 }}{{ messages[0].content }}", {}, "t.jinja")
    answer = template.render(HELLO, (), [Ask(1, False)])[0]
    assert isinstance(answer, Failure)
    assert answer.kind == "failed"
    first = template._process
    assert isinstance(template.render(HELLO, (), [Ask(1, False)])[0], Failure)
    assert template._process is first


def test_syntax_error_names_the_line():
    with pytest.raises(ModelError, match=r"E063.*line 2"):
        rendered("a\n{% for %}")


def test_the_clock_stands_still_within_one_template():
    template = Template("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}", {}, "t.jinja")
    first = template.render(HELLO, (), [Ask(1, False)])
    time.sleep(0.01)
    assert template.render(HELLO, (), [Ask(1, False)]) == first


INJECTIONS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__cla' ~ 'ss__'] }}",
    "{{ ('a' | attr('__cla' + 'ss__')).x }}",
    "{{ self.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['os'] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ strftime_now['__glo' ~ 'bals__'] }}",
    "{{ dict['__cla' ~ 'ss__'] }}",
    "{{ messages['__class__'] }}",
    "{{ '%s' | format(messages.__class__) }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ (messages | map(attribute='__class__') | list)[0] }}",
    "{{ namespace(_x=1) }}",
    "{% set f = '{0.__class__.__init__}'.format %}{{ f(1) }}",
    "{{ ''.format.__self__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ config.__class__ }}{{ request.application.__globals__ }}",
    "{{ messages[0].content.__class__.__base__.__subclasses__()[40]('/etc/passwd').read() }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ (''|attr(['__','class','__']|join)) }}",
    "{% set x = '__class' ~ '__' %}{{ ''[x] }}",
    "{{ messages | map('attr', '__class__') | list }}",
    "{{ messages | groupby('__class__') | list }}",
    "{{ messages | selectattr('__class__') | list }}",
    "{{ messages | sum(attribute='__class__') }}",
    "{{ 'x'.format_map({'x': 1}.__class__) }}{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{% import 'os' as os %}{{ os.system('id') }}",
    "{% from '/etc/passwd' import x %}",
    "{% extends '/etc/passwd' %}",
    "{{ strftime_now.__self__ }}{{ raise_exception.__code__ }}",
]


def test_there_are_thirty_injections():
    assert len(set(INJECTIONS)) >= 30


@pytest.mark.row("S13", "S7")
@pytest.mark.parametrize("text", INJECTIONS)
def test_f12_injections_are_refused_or_find_nothing(text):
    try:
        answer = rendered(text)
    except Unsafe:
        return
    shown = answer if isinstance(answer, str) else answer.message
    assert "<class" not in shown
    assert "object at 0x" not in shown
    assert "root:" not in shown
    assert "uid=" not in shown


@pytest.mark.parametrize("text", INJECTIONS[:6])
def test_f12_plain_injections_are_unsafe(text):
    with pytest.raises(Unsafe, match="E062"):
        rendered(text)


def test_f12_a_template_cannot_read_or_write_files(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("canary")
    answer = rendered("{% include '" + str(secret) + "' %}")
    assert isinstance(answer, Failure)
    assert "canary" not in answer.message


BOMBS = [
    "{{ 'a' * 300000000 }}",
    "{{ range(10**6) | list }}",
    "{{ 9 ** 99999999 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}xxxx{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'a' | center(10**9) }}",
    "{{ [1] | tojson(indent=10**10) }}",
    "{% macro m(n) %}{{ m(n - 1) }}{{ m(n - 1) }}{% endmacro %}{{ m(900) }}",
    "{% macro m() %}{% for i in range(99999) %}{{ 'x'.ljust(1000000) }}{% endfor %}{% endmacro %}{{ m() }}",
    "{{ " + "[" * 3000 + "]" * 3000 + " }}",
]


@pytest.mark.row("S13")
@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_f12_bombs_stop_within_three_seconds_and_300_mb(text):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    template = Template(text, {}, "t.jinja")
    with pytest.raises(Unsafe, match="E061") as caught:
        template.render(HELLO, (), [Ask(1, True)])
    status = Path(f"/proc/{template._process.pid}/status") if template._process is not None else None
    if status is not None and status.exists():
        assert int(status.read_text().split("VmHWM:")[1].split()[0]) < 300 << 10
    del template
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 3
    assert caught.value.exit_code == 9


def test_f12_too_large_a_template_is_unsafe():
    with pytest.raises(Unsafe, match="E060"):
        Template("x" * (MAX_TEMPLATE_BYTES + 1), {}, "t.jinja")
    assert rendered("x" * MAX_TEMPLATE_BYTES) == "x" * MAX_TEMPLATE_BYTES


def test_long_messages_are_within_the_limits():
    text = "é" * 3_000_000
    messages = [{"role": "user", "content": text}]
    assert rendered("{% for m in messages %}{{ '[' + m.content + ']' }}{% endfor %}", messages) == f"[{text}]"


def test_after_a_bomb_the_next_render_starts_a_new_process():
    template = Template("{{ 'a' * (10 ** (messages[0].content | int)) }}", {}, "t.jinja")
    assert template.render([{"content": "1"}], (), [Ask(1, True)]) == ["a" * 10]
    with pytest.raises(Unsafe):
        template.render([{"content": "9"}], (), [Ask(1, True)])
    assert template.render([{"content": "2"}], (), [Ask(1, True)]) == ["a" * 100]


def test_an_interrupted_render_does_not_answer_the_next_one():
    loop = "{% for a in range(9999) %}{% for b in range(999) %}{% endfor %}{% endfor %}"
    template = Template(
        "{% if messages[0].content == 'slow' %}" + loop + "{% endif %}{{ messages[0].content }}", {}, "t"
    )
    assert template.render(HELLO, (), [Ask(1, False)]) == ["hello"]

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            template.render([{"role": "user", "content": "slow"}], (), [Ask(1, False)])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert template.render(HELLO, (), [Ask(1, False)]) == ["hello"]


def test_the_process_ends_with_its_template():
    template = Template("x", {}, "t.jinja")
    template.render(HELLO, (), [Ask(1, True)])
    process = template._process.pid
    del template
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_rendering_is_fast_enough():
    template = Template("{% for m in messages %}{{ m.content }}{% endfor %}", {}, "t.jinja")
    template.render(HELLO, (), [Ask(1, True)])
    begin = time.process_time()
    for _ in range(200):
        template.render(HELLO * 4, (), [Ask(4, False), Ask(3, True)])
    assert (time.process_time() - begin) / 200 < 0.001
