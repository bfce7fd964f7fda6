"use strict";

const $ = (id) => document.getElementById(id);
const percent = (fraction) => (100 * fraction).toFixed(2) + " %";

// Only where the service asks for one; kept until the tab is closed.
const keyHeader = () => {
  const key = sessionStorage.getItem("api-key");
  return key ? { Authorization: `Bearer ${key}` } : {};
};

async function ask(url, options = {}) {
  const key = keyHeader();
  try {
    const response = await fetch(url, { ...options, headers: { ...options.headers, ...key } });
    if (response.status === 401 || response.status === 403) $("key").hidden = false;
    return response;
  } catch (error) {
    if (key.Authorization) $("key").hidden = false; // no header may hold it
    throw error;
  }
}

async function get(url) {
  const response = await ask(url);
  const body = await response.json();
  if (!response.ok) throw new Error(body.detail);
  return body;
}

function say(text, isProblem = false) {
  $("status").textContent = text;
  $("status").className = isProblem ? "problem" : "";
}

function fill(select, names) {
  select.replaceChildren(...names.map((name) => new Option(name, name)));
}

function request() {
  const budget = {};
  for (const [id, member] of [["weight-bits", "weight_bits"], ["activation-bits", "activation_bits"], ["model-bytes", "model_bytes"]]) {
    if ($(id).value !== "") budget[member] = Number($(id).value);
  }
  return { supernet: $("supernet").value, device: $("device").value, budget };
}

async function order(event) {
  event.preventDefault();
  const button = $("order").querySelector("button");
  button.disabled = true;
  $("result").hidden = true;
  say("Searching and building…");
  try {
    const response = await ask("/subnets", {
      method: "POST",
      headers: { "Content-Type": "application/json", Prefer: "respond-async, wait=5" },
      body: JSON.stringify(request()),
    });
    let record = await response.json();
    if (!response.ok) throw new Error(explain(record));
    const hit = response.status === 200;
    while (record.status === "queued" || record.status === "building") {
      const { stage, detail } = record.progress ?? { stage: "" };
      say(`${record.status}: ${detail ?? `${stage}…`}`);
      await new Promise((resolve) => setTimeout(resolve, 1000));
      record = await get(`/subnets/${record.id}`);
    }
    if (record.status === "failed") throw new Error(explain(record.problem));
    show(record, hit);
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
}

function explain(problem) {
  const nearest = problem.nearest
    ? ` The nearest budget that a subnet meets: ${Object.entries(problem.nearest).map(([name, value]) => `${name} ${value}`).join(", ")}.`
    : "";
  return problem.detail + nearest;
}

function show(record, hit) {
  say(hit ? "This subnet was there already." : "Built.");
  const [low, high] = record.prediction_interval;
  const facts = [
    ["Id", record.id],
    ["Predicted accuracy", `${percent(record.predicted_accuracy)} (90 % interval ${percent(low)} to ${percent(high)})`],
    ["Measured accuracy", record.measured_accuracy === null ? "not measured" : percent(record.measured_accuracy)],
    ["Average bits", `weights ${record.cost.weight_bits.toFixed(2)}, activations ${record.cost.activation_bits.toFixed(2)}`],
    ["Packed size", `${record.cost.model_bytes.toLocaleString()} bytes, ${record.cost.compression.toFixed(1)} times smaller than float32`],
  ];
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  $("files").replaceChildren(...record.artifacts.map((file) => {
    const link = element("a", file.name);
    link.href = file.url;
    link.addEventListener("click", (event) => save(event, file));
    const item = element("li", "");
    item.append(link, ` ${file.bytes.toLocaleString()} bytes`);
    return item;
  }));
  $("layers").replaceChildren(...record.configuration.layers.map((layer) => {
    const row = element("tr", "");
    row.append(element("td", layer.name), element("td", layer.weight_bits), element("td", layer.activation_bits));
    return row;
  }));
  $("result").hidden = false;
}

// A link sends no key: where one is needed, fetch the file and hand it to the browser.
async function save(event, file) {
  if (!sessionStorage.getItem("api-key")) return;
  event.preventDefault();
  const response = await ask(file.url);
  if (!response.ok) return say((await response.json()).detail, true);
  const link = element("a", "");
  link.href = URL.createObjectURL(await response.blob());
  link.download = file.name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

async function start() {
  try {
    const [supernets, catalogue] = await Promise.all([get("/supernets"), get("/devices")]);
    fill($("supernet"), supernets.supernets.map((supernet) => supernet.name));
    const usable = catalogue.devices.filter((device) => device.profile);
    fill($("device"), usable.map((device) => device.name));
    const describe = () => {
      const { weight, activation } = usable.find((device) => device.name === $("device").value).profile;
      $("device-note").textContent =
        `Weights ${weight.bits.join(", ")} bits, ${weight.granularity.replace("_", " ")}, ${weight.symmetry}; ` +
        `activations ${activation.bits.join(", ")} bits, ${activation.symmetry}.`;
    };
    $("device").addEventListener("change", describe);
    $("order").addEventListener("submit", order);
    describe();
  } catch (error) {
    say(error.message, true);
  }
}

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  // Others are in no key, but come with what is copied out of a document.
  sessionStorage.setItem("api-key", $("api-key").value.replace(/[^\x21-\x7e]/g, ""));
  $("key").hidden = true;
  say("");
  start();
});
start();
