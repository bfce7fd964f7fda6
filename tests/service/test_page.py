"""The page's script in Node, where there is one, with a real server; of the document only what it uses."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.security.keys import ApiKey, Scope

SCRIPT = Path(__file__).parents[2] / "service" / "web" / "page.js"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node")

PAGE = """
const fs = require("node:fs"), vm = require("node:vm");
const [script, server, readKey, buildKey] = process.argv.slice(1);

const element = () => ({
  hidden: false, value: "", textContent: "", listeners: {}, children: [],
  addEventListener(type, listener) { this.listeners[type] = listener; },
  replaceChildren(...children) {
    this.children = children;
    this.value = children[0]?.value ?? this.value;
  },
  append(...children) { this.children.push(...children); },
  querySelector() { return this.button ??= element(); },
});

async function open(stored) {
  const elements = { key: { ...element(), hidden: true } };
  let asked = [];
  const context = {
    document: { getElementById: (id) => elements[id] ??= element(), createElement: element },
    sessionStorage: {
      getItem: (name) => stored[name] ?? null,
      setItem: (name, value) => stored[name] = value,
    },
    Option: function (name) { this.value = name; },
    fetch: (url, options) => {
      const answer = fetch(server + url, options);
      asked.push(answer.then((response) => response.clone().text()));
      return answer;
    },
    setTimeout,
  };
  vm.runInNewContext(fs.readFileSync(script, "utf8"), context);
  const page = {
    // What the listeners start goes on after them: until nothing new is asked for.
    async settled() {
      while (asked.length) {
        const answers = asked;
        asked = [];
        await Promise.allSettled(answers);
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
      return [elements.key.hidden, elements.device?.children.length ?? 0, elements.status?.textContent ?? ""];
    },
    async submit(form, values = {}) {
      for (const [id, value] of Object.entries(values)) context.document.getElementById(id).value = value;
      await elements[form].listeners.submit({ preventDefault() {} });
      return page.settled();
    },
  };
  return page;
}

(async () => {
  const page = await open({});
  const seen = {};
  seen.none = await page.settled();
  seen.pasted = await page.submit("key", { "api-key": readKey + "\\u200b" });
  seen.reading = await page.submit("order");
  seen.building = await page.submit("key", { "api-key": buildKey });
  seen.kept = await (await open({ "api-key": "\\u200b" })).settled();
  console.log(JSON.stringify(seen));
})();
"""


def test_whoever_is_refused_can_give_another_key(serve: Callable[..., Any]) -> None:
    assert NODE is not None
    (read, read_key), (build, build_key) = (ApiKey.make(name=str(scope), scope=scope) for scope in Scope)
    server = serve(api_keys=f"{read.to_entry()},{build.to_entry()}")
    done = subprocess.run(
        [NODE, "-e", PAGE, str(SCRIPT), server.url, read_key, build_key],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    hidden = {when: now[0] for when, now in seen.items()}
    assert hidden == {"none": False, "pasted": True, "reading": False, "building": True, "kept": False}
    assert seen["pasted"][1] == seen["building"][1] > 0
    assert "only reads" in seen["reading"][2]
