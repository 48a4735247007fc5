#!/usr/bin/env bash
# openai 3.57.0 (Python 3.11).
# One would guess: a streamed answer that ends before "data: [DONE]" and without any finish_reason, because
#   the server stopped, raises an error in the loop over it.
# What happens: the loop ends as after a whole answer. An event that was cut in its middle is dropped. A 200
#   answer that is a web page, or empty, is a stream of no chunks. Without streaming, a web page is returned
#   by create() as a str, and JSON of wrong types as a ChatCompletion that holds them ("choices" being a
#   string), unchecked.
# Where it matters: reading a model behind a server or proxy, in evaluations above all: shortened answers are
#   scored. The caller has to see a finish_reason before the answer counts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openai==3.57.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys

import httpx2
import openai

print("openai", openai.__version__)


def client(body, kind):
    """A client whose server is a function: every request gets this body with status 200."""

    def answer(request):
        return httpx2.Response(200, headers={"content-type": kind}, content=body)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    return openai.OpenAI(api_key="none", base_url="http://server/v1", http_client=http, max_retries=0)


def streamed(body):
    chat = client(body, "text/event-stream").chat.completions
    try:
        return [chunk.choices[0].delta.content for chunk in chat.create(model="m", messages=[], stream=True)]
    except Exception as error:
        return repr(error)


def whole(body, kind="application/json"):
    try:
        return client(body, kind).chat.completions.create(model="m", messages=[])
    except Exception as error:
        return error


def event(word):
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "1", "choices": [choice]}).encode() + b"\n\n"


page = b"<html>bad gateway</html>"
seen = {
    "ends after two events": streamed(event("one") + event("two")),
    "ends within the second event": streamed(event("one") + event("two")[:-20]),
    "a web page as a stream": streamed(page),
}
for name, chunks in seen.items():
    print(f"{name}: {chunks}")
text, wrong = whole(page, "text/html"), whole(b'{"id": 5, "choices": "abc"}')
print(f"a web page, not streamed: {text!r}")
print(f"wrong types: {type(wrong).__name__}, id {wrong.id!r}, choices {wrong.choices!r}")
if list(seen.values()) != [["one", "two"], ["one"], []] or text != page.decode() or wrong.choices != "abc":
    sys.exit("CHANGED: see the lines above")
print("AS STATED: none of the five raised an error")
PYTHON
