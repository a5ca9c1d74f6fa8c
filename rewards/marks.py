"""Where a model says that it answers: tags, boxes, protocol actions, phrases. Every scan is one pass over the text.

Model text is data here: nothing is executed, and text of a megabyte takes well under a second.
"""

from __future__ import annotations

import json
import re
from typing import Literal, NamedTuple

How = Literal["tag", "action", "boxed", "phrase", "letter", "option", "whole", "none"]


class Mark(NamedTuple):
    """A marked answer; ``content`` "" means that an answer was announced and none can be read (empty, cut off, two at once)."""

    content: str
    how: How


_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    ord(wide): plain for wide, plain in zip("。、【】「」『』−\u3000", ".,[]\"\"\"\"- ", strict=True)
}  # fmt: skip
_HIDDEN = re.compile(
    r"<(/?)(think|thinking|thought|rethink|reasoning|analysis|confidence|tool_call|tool_response|code|grounding)\b[^<>]{0,80}>",
    re.IGNORECASE,
)
_CALLS = {"tool_call", "tool_response", "code", "grounding"}
_END_TOKENS = re.compile(r"<\|(?:im_end|endoftext|eot_id|end)\|>|</s>|<end_of_turn>")
_ANSWER_TAG = re.compile(r"<(/?)answer\b[^<>]{0,40}>", re.IGNORECASE)
_GLM_BOX = re.compile(r"<\|(begin|end)_of_box\|>")
_ACTION = re.compile(r"<action>\s*output\s+answer\s*:((?:(?!</?action>).)*+)(</action>)?", re.DOTALL | re.IGNORECASE)
_JSON_ANSWER = re.compile(r'"(?:ans|answer|final_answer)"\s*+:\s*+("(?:[^"\\]|\\.)*+"|-?\d[\d.eE+-]*+)', re.IGNORECASE)
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*+\{|\\.|[{}]", re.DOTALL)
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|bf|rm)\s*\{([^{}]*)\}")
_TAG = re.compile(r"</?[A-Za-z][\w|]{0,30}>")
_JOINED = re.compile(r"[\s*_$.]*(?:,|/|&|or|and|or\s+maybe|或|和|oder|ou|und|et)[\s*_$]*", re.IGNORECASE)
_PHRASE = re.compile(
    r"(?<![A-Za-z])(?:answer|ans|option|choice)\b(?:[*_`\"')\s]{0,6}[:=]|\.(?=\s*[(\[]?[A-Za-z])|\s{1,4}(?:[-–—]|→|=>)\s"
    r"|['’]s\s|\s{1,4}(?:is|would\s+be|must\s+be|should\s+be|will\s+be)\b\s{0,4}:?)"
    r"|(?:^|\n)\s{0,9}#{1,6}\s{0,9}(?:final\s+|correct\s+)?answer\s{0,4}(?=\n)"
    r"|\b(?:réponse|antwort|respuesta|resposta|risposta)\b(?:\s+(?:correcte|correcta|correta|corretta|finale?))?"
    r"\s{0,4}(?::|\b(?:est|ist|lautet|es|é|è)\b\s{0,4}:?)"
    r"|(?:ответ|उत्तर)\s{0,4}(?:[:—-]|है)|(?:الإجابة|الجواب)\s{0,4}(?:الصحيحة\s{0,4})?(?::|هي|هو)"
    r"|(?:答案|答え|正解|解答)\s{0,4}(?:应该)?(?:是|为|は|:|选)|选择|选(?!项|择)|(?:정답|답)\s{0,4}(?:은|는|:)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=\w\w\w)\.\s+(?=[A-Z])")
_ABBREVIATION = re.compile(r"(?:\b[A-Za-z]\.){2,}$")
_DECORATION = " \t\r\n*_`\"'“”‘’«»>#"


def spoken(text: str) -> str:
    """The text without thoughts and tool calls. A block that never ends hides all that follows it.

    Chat templates open the thought inside the prompt: then an end without a beginning hides all that stands before it.
    """
    text = _END_TOKENS.sub("", text.translate(_WIDE).replace("\boxed{", "\\boxed{"))
    kept: list[str] = []
    start, open_name = 0, ""
    for found in _HIDDEN.finditer(text):
        name, closing = found.group(2).lower(), bool(found.group(1))
        if not open_name and not closing:
            kept.append(text[start : found.start()])
            open_name = name
        elif closing and name == open_name:
            open_name, start = "", found.end()
        elif closing and not open_name and name not in _CALLS:
            kept, start = [], found.end()
    if not open_name:
        kept.append(text[start:])
    return "\n".join(kept)


def marked(text: str) -> Mark | None:
    """The marked answer of a text without thoughts, by the strongest evidence: tag, action, box, phrase. None: no mark."""
    for content, how in ((_tagged(text), "tag"), (_acted(text), "action"), (_boxed(text), "boxed")):
        if content is not None:
            return Mark(unwrap(content), how)  # type: ignore[arg-type]
    phrases = list(_PHRASE.finditer(text))
    return Mark(after_phrase(text, phrases[-1].end()), "phrase") if phrases else None


def after_phrase(text: str, start: int) -> str:
    """The rest of the sentence from ``start``, on this line or, if nothing follows, on the next."""
    rest = text[start : start + 4000].lstrip(_DECORATION + ":=")
    sentence = _SENTENCE_END.split(rest.split("\n", 1)[0], maxsplit=1)[0].strip(_DECORATION)
    return sentence if _ABBREVIATION.search(sentence) else sentence.rstrip(". ").rstrip(_DECORATION)


def unwrap(content: str) -> str:
    """What stands inside a marked answer without further marks around it (a box in a tag, a phrase in a box, LaTeX)."""
    for _ in range(4):
        before = content
        content = content.strip().strip("$").strip()
        inner = _boxed(content)
        if inner is None:
            found = _JSON_ANSWER.search(content) if content.startswith("{") else None
            inner = _json_value(found) if found else None
        if inner is None:
            phrase = _PHRASE.match(content)
            inner = after_phrase(content, phrase.end()) if phrase else None
        whole = _WRAPPED.fullmatch(content)
        content = (whole.group(1) if whole else content) if inner is None else inner
        if content == before:
            break
    return _TAG.sub(" ", content).strip(_DECORATION.replace(">", "")).strip()


def _tagged(text: str) -> str | None:
    pairs: list[tuple[int, int, str]] = []
    opened: tuple[int, int] | None = None
    for found in _ANSWER_TAG.finditer(text):
        if not found.group(1):
            opened = found.span()
        elif opened is not None:
            pairs.append((opened[0], found.end(), text[opened[1] : found.start()]))
            opened = None
        elif not pairs:
            pairs.append((0, found.end(), text[: found.start()]))  # the prompt opened the tag
    if opened is not None:
        return ""  # cut off inside the answer: the rest of it is not known
    return _last(text, pairs)


def _last(text: str, pairs: list[tuple[int, int, str]]) -> str | None:
    """The last of several marked answers, unless it is one of two that stand side by side."""
    if not pairs:
        return None
    if len(pairs) > 1 and _JOINED.fullmatch(text[pairs[-2][1] : pairs[-1][0]][:50]):
        return ""
    return pairs[-1][2]


def _acted(text: str) -> str | None:
    """What a protocol's last action answers: FrameThinker's ``output answer``, OpenThinkIMG's ``Terminate``, plain JSON."""
    actions = list(_ACTION.finditer(text))
    if actions:
        return actions[-1].group(1).strip() if actions[-1].group(2) else ""
    values = list(_JSON_ANSWER.finditer(text))
    if values:
        return _json_value(values[-1])
    return "" if '"Terminate"' in text else None


def _json_value(found: re.Match[str]) -> str:
    try:
        return str(json.loads(found.group(1), strict=False))
    except ValueError:
        return ""


def _boxed(text: str) -> str | None:
    boxes: list[tuple[int, int, str]] = []
    outer: tuple[int, int] | None = None
    depth = 0
    for found in _BRACE.finditer(text):
        token = found.group()
        if token.endswith("{") and token != "\\{":
            depth += 1
            if outer is None and token != "{":
                outer, depth = found.span(), 1
        elif token == "}":
            depth -= 1
            if outer is not None and depth == 0:
                boxes.append((outer[0], found.end(), text[outer[1] : found.start()]))
                outer = None
    begun: int | None = None
    for found in _GLM_BOX.finditer(text):
        if found.group(1) == "begin":
            begun = found.end()
        elif begun is not None:
            boxes.append((begun, found.end(), text[begun : found.start()]))
            begun = None
    return "" if outer is not None or begun is not None else _last(text, boxes)


def answer_start(text: str) -> int | None:
    """Where the marked answer of a text begins, behind its tag, box or phrase; None without a mark."""
    for opener in (r"<answer\b[^<>]{0,40}>", r"\\boxed\s*\{"):
        found = list(re.finditer(opener, text, re.IGNORECASE))
        if found:
            return found[-1].end()
    phrases = list(_PHRASE.finditer(text))
    return phrases[-1].end() if phrases else None
