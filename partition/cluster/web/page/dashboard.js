// Shows the coordinator's state as it comes. Every text goes through textContent: names of devices
// and classes are data, never markup.
import { picture } from "./picture.js";

const KEPT = 240; // points of the chart, two a second
const $ = (id) => document.getElementById(id);
const past = []; // [median, 99 %] of the latency
let before = null; // the state before, for rates
let rate = 0;

function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given);
    window.history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token");
}

function badge(text, kind) {
  $("state").textContent = text;
  $("state").className = `badge ${kind}`;
}

function ask(message) {
  $("login").hidden = false;
  $("main").hidden = true;
  $("denied").textContent = message;
  badge("locked", "");
}

async function watch() {
  const secret = token();
  if (!secret) return ask("");
  try {
    const answer = await fetch("v1/events", { headers: { Authorization: `Bearer ${secret}` } });
    if (answer.status === 401) {
      sessionStorage.removeItem("token");
      return ask("That is not the token.");
    }
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    $("login").hidden = true;
    $("main").hidden = false;
    await events(answer.body.getReader());
  } catch (error) {
    console.warn(error);
  }
  badge("coordinator away", "bad");
  setTimeout(watch, 1000);
}

async function events(reader) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((l) => l.startsWith("data: ")).map((l) => l.slice(6));
      if (data.length) show(JSON.parse(data.join("\n")));
    }
  }
}

const ms = (value) => (value ? `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ms` : "–");
const mb = (value) => (value == null ? "–" : `${(value / 1e6).toFixed(0)} MB`);

function show(state) {
  const held = state.slots.filter((slot) => slot.holders.length).length;
  const count = (name) => state.counts[name] ?? 0;
  if (held === state.slots.length) badge("all slots answer", "good");
  else badge(held ? `${held} of ${state.slots.length} slots` : "no slot has a worker",
    held ? "warn" : "bad");
  $("cluster").textContent = `${state.cluster} · ${state.model} · plan ${state.plan.slice(0, 12)}`;
  const ended = count("complete") + count("degraded");
  if (before && state.time > before.time) {
    rate = 0.7 * rate + 0.3 * Math.max(0, (ended - before.ended) / (state.time - before.time));
  }
  before = { time: state.time, ended };
  tiles([
    [ms(state.latency.p50_ms), "median latency"],
    [ms(state.latency.p99_ms), "99 % within"],
    [rate.toFixed(rate < 10 ? 1 : 0), "answers a second"],
    [state.pending, "requests under way"],
    [state.workers.reduce((sum, worker) => sum + worker.queue, 0), "wait at devices"],
    [count("degraded"), "degraded answers"],
    [count("unanswered"), "without an answer"],
  ]);
  missing(state);
  picture($("picture"), state, rate > 0);
  chart(state.latency);
  devices(state);
  slots(state);
  counts(state.counts);
}

function tiles(rows) {
  $("tiles").replaceChildren(...rows.map(([value, text]) => {
    const tile = document.createElement("div");
    const number = document.createElement("b");
    const name = document.createElement("span");
    number.textContent = value;
    name.textContent = text;
    tile.append(number, name);
    return tile;
  }));
}

function missing(state) {
  const lost = state.slots.filter((slot) => !slot.holders.length);
  const names = lost.flatMap((slot) => slot.classes);
  $("missing").hidden = !lost.length;
  $("missing").textContent = `Without a device: slot ${lost.map((s) => s.slot).join(", ")}. ` +
    `Answers do not cover ${names.slice(0, 20).join(", ")}${names.length > 20 ? ", …" : ""}.`;
  const away = Object.entries(state.unreachable).map(([where, why]) => `${where}: ${why}`);
  $("unreachable").hidden = !away.length;
  $("unreachable").textContent = away.join("; ");
}

function row(cells) {
  const line = document.createElement("tr");
  for (const cell of cells) {
    const [text, kind] = Array.isArray(cell) ? cell : [cell, ""];
    const place = document.createElement("td");
    place.textContent = text;
    place.className = kind;
    line.append(place);
  }
  return line;
}

function devices(state) {
  const mine = (worker) => worker.slots.filter((s) => s.plan === state.plan).map((s) => s.slot);
  const lines = state.workers.map((worker) => row([
    worker.device,
    mine(worker).join(", ") || ["none", "warn"],
    worker.queue,
    worker.in_flight,
    ms(worker.latency.p50_ms),
    ms(worker.round_trip.p99_ms),
    worker.counts.answered ?? 0,
    mb(worker.memory.process),
    worker.temperature == null ? "–" : [`${worker.temperature.toFixed(0)} °C`,
      worker.temperature >= 80 ? "bad" : ""],
    [`${worker.last_seen.toFixed(1)} s`, worker.last_seen > 3 ? "bad" : ""],
  ]));
  const here = new Set(state.workers.map((worker) => worker.device));
  const planned = new Set(state.slots.flatMap((slot) => slot.planned));
  for (const name of planned) {
    if (!here.has(name)) lines.push(row([name, ["away", "bad"], ...Array(8).fill("")]));
  }
  $("devices").tBodies[0].replaceChildren(...lines);
}

function slots(state) {
  $("slots").tBodies[0].replaceChildren(...state.slots.map((slot) => row([
    slot.slot,
    slot.classes.join(", "),
    slot.holders.length ? slot.holders.join(", ") : ["nobody", "bad"],
    slot.planned.join(", "),
    ms(slot.latency.p50_ms),
    ms(slot.latency.p99_ms),
  ])));
}

function counts(table) {
  $("counts").replaceChildren(...Object.entries(table).map(([name, value]) => {
    const pair = document.createElement("div");
    const term = document.createElement("dt");
    const number = document.createElement("dd");
    term.textContent = name.replaceAll("_", " ");
    number.textContent = value;
    pair.append(term, number);
    return pair;
  }));
}

function chart(latency) {
  past.push([latency.p50_ms, latency.p99_ms]);
  if (past.length > KEPT) past.shift();
  const top = Math.max(...past.map(([, high]) => high), 0.1) * 1.1;
  const line = (index, kind) => {
    const points = past.map((point, at) =>
      `${(600 * (at + KEPT - past.length)) / (KEPT - 1)},${85 - (80 * point[index]) / top}`);
    const shape = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    shape.setAttribute("class", kind);
    shape.setAttribute("points", points.join(" "));
    return shape;
  };
  $("chart").replaceChildren(line(0, "p50"), line(1, "p99"));
  $("scale").textContent = `full height ${top.toFixed(1)} ms`;
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  $("token").value = "";
  watch();
});
watch();
