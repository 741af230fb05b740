"""One self-contained HTML file: scripts, styles and data in it, and a policy that lets nothing else run or load."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from typing import Any

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?:async )?(?:function|class|const) (\w+)", re.MULTILINE)
_STYLE = re.compile(r'^<link rel="stylesheet" href="/static/([\w.-]+\.css)">\n', re.MULTILINE)
_SCRIPT = re.compile(r'^<script type="module" src="/static/([\w.-]+\.js)"></script>\n', re.MULTILINE)
_UNSAFE = {mark: f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}  # which could end the element they stand in


@cache
def static(name: str) -> str:
    """A file of `static/`."""
    return (files("dataengine.view") / "static" / name).read_text(encoding="utf-8")


def page(name: str, data: Any) -> str:
    """A page of `static/` as one file.

    Its stylesheets and its module, with all that this imports, are put into it; `data` (JSON values) becomes the
    element `#data`.
    """
    shell = static(name)
    style = "".join(static(sheet) for sheet in _STYLE.findall(shell))
    script = "const modules = {};\n" + "".join(_modules(_SCRIPT.findall(shell), set()))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>\n'
    body = f'<script type="application/json" id="data">{json_text(data)}</script>\n'
    body += f'<script type="module">{script}</script>\n'
    shell = _SCRIPT.sub("", _STYLE.sub("", shell))
    return shell.replace("</head>", f"{head}</head>").replace("</body>", f"{body}</body>")


def json_text(data: Any) -> str:
    """JSON that may stand inside a `script` element, whatever its texts hold."""
    import orjson

    try:
        text = orjson.dumps(data).decode()
    except TypeError:  # half a surrogate pair, or a number of more than 64 bits
        text = json.dumps(data)
    for mark, escape in _UNSAFE.items():
        text = text.replace(mark, escape)
    return text


def _modules(names: Iterable[str], seen: set[str]) -> Iterator[str]:
    """Modules as functions that give their exports, each after those that it imports; names in them cannot clash."""
    for name in names:
        if name not in seen:
            seen.add(name)
            text = static(name)
            yield from _modules((other for _, other in _IMPORT.findall(text)), seen)
            imports = "".join(
                f"const {{{names.replace(' as ', ': ')}}} = modules[{json.dumps(other)}];\n"
                for names, other in _IMPORT.findall(text)
            )
            exports = ", ".join(_EXPORT.findall(text))
            body = _EXPORT.sub(lambda match: match[0].removeprefix("export "), _IMPORT.sub("", text))
            yield f"modules[{json.dumps(name)}] = (() => {{\n{imports}{body}return {{{exports}}};\n}})();\n"


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
