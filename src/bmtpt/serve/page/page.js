// Everything that comes from a task or a text reaches the page as text, never as HTML.
const SHOWN = 8; // labels before those that are folded away
const find = (id) => document.getElementById(id);
const [unlock, ask, task, fields, status, result] = ["unlock", "ask", "task", "fields", "status", "result"].map(find);
let token = ""; // in memory only
let tasks = [];

function make(tag, kind, text = "", ...children) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.textContent = text;
  element.append(...children);
  return element;
}

function say(sentence, wrong = false) {
  status.textContent = sentence;
  status.classList.toggle("wrong", wrong);
}

async function call(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  // Without credentials the browser does not open its own box for a password.
  const options = { method: body ? "POST" : "GET", headers, body, credentials: "omit", redirect: "error" };
  const reply = await fetch(path, options).catch(() => {
    throw new Error("The server cannot be reached. Is it running?");
  });
  const found = await reply.json().catch(() => ({}));
  if (reply.ok) return found;
  throw Object.assign(new Error(found.error?.message ?? `The server answered ${reply.status}.`), { status: reply.status });
}

async function guarded(action) {
  try {
    await action();
  } catch (error) {
    if (error.status === 401) lock();
    else say(error.message, true);
  }
}

function lock() {
  say(token ? "The server does not know this token. Check it and try again." : "Enter a token to see the tasks.", Boolean(token));
  token = "";
  unlock.hidden = false;
  ask.hidden = result.hidden = true;
  find("token").focus();
}

async function list() {
  tasks = (await call("v1/models")).data;
  unlock.hidden = true;
  ask.hidden = tasks.length === 0;
  say(tasks.length ? "" : "No prompt is loaded yet. Load one and reload this page.");
  task.replaceChildren(...tasks.map(({ id }) => new Option(id, id)));
  const wanted = location.hash.slice(1); // names of prompts need no escapes
  if (tasks.some(({ id }) => id === wanted)) task.value = wanted;
  if (tasks.length) choose();
}

const chosen = () => tasks.find(({ id }) => id === task.value);

function choose() {
  const { columns, labels } = chosen();
  const first = labels.slice(0, SHOWN).join(", ") + (labels.length > SHOWN ? ` and ${labels.length - SHOWN} more` : "");
  find("about").textContent = labels.length ? `Answers: ${first}` : "Answers in its own words";
  fields.replaceChildren(...columns.flatMap((column, number) => field(column, number, columns.length > 1)));
  result.hidden = true;
}

function field(column, number, several) {
  const name = make("label", "", several ? column : "Texts, one per line");
  const area = make("textarea");
  area.id = name.htmlFor = `field-${number}`;
  area.required = true;
  area.dataset.column = column;
  if (!several) return [name, area];
  const hint = make("p", "hint", number ? "" : "One row per line: the first lines of all fields belong together, and so on.");
  return number ? [name, area] : [name, hint, area];
}

function rows() {
  const columns = [...fields.querySelectorAll("textarea")].map((area) => ({
    name: area.dataset.column,
    lines: area.value.split("\n").map((line) => line.trim()),
  }));
  const most = Math.max(...columns.map(({ lines }) => lines.findLastIndex(Boolean) + 1));
  const found = [];
  for (let line = 0; line < most; line++) {
    const missing = columns.filter(({ lines }) => !lines[line]);
    if (missing.length === columns.length) continue; // a blank line
    if (missing.length) throw new Error(`Line ${line + 1} of ${missing[0].name} is empty.`);
    found.push(Object.fromEntries(columns.map(({ name, lines }) => [name, lines[line]])));
  }
  if (!found.length) throw new Error("Type a text first.");
  return found;
}

async function answer() {
  const asked = rows();
  const body = JSON.stringify({ task: task.value, rows: asked, spread: true });
  say("Asking …");
  const start = performance.now();
  const { answers } = await call("predict", body);
  const took = Math.round(performance.now() - start);
  const labels = answers.slice(0, 3).map(({ label }) => label).join(", ") + (answers.length > 3 ? " …" : "");
  say(`${answers.length} ${answers.length > 1 ? "texts" : "text"} answered in ${took} ms: ${labels}`);
  find("answers").replaceChildren(...answers.map((each, number) => card(asked[number], each)));
  find("curl").textContent = curl(JSON.stringify({ task: task.value, rows: asked }));
  result.hidden = false;
}

function card(row, { label, all, spread, cut }) {
  const shown = make("li", "", "", make("p", "text", Object.values(row).join("\n")));
  if (cut) shown.append(make("p", "hint", "The text was too long for this task and was cut."));
  if (!all) {
    shown.append(make("p", "written", label));
    return shown;
  }
  const sorted = Object.entries(all).sort(([, one], [, other]) => other - one);
  const bars = sorted.map(([name, share], place) => bar(name, share, spread?.[name], place === 0));
  shown.append(make("ul", "shares", "", ...bars.slice(0, SHOWN)));
  if (bars.length > SHOWN) {
    const rest = make("ul", "shares", "", ...bars.slice(SHOWN));
    shown.append(make("details", "", "", make("summary", "", `${bars.length - SHOWN} more labels`), rest));
  }
  return shown;
}

function bar(name, share, deviation, best) {
  const fill = make("span", "fill");
  fill.style.width = `${100 * share}%`; // the object model, which the content policy allows
  const track = make("span", "track", "", fill);
  track.setAttribute("aria-hidden", "true");
  const percent = (value) => (100 * value).toFixed(1);
  const number = deviation ? `${percent(share)} ± ${percent(deviation)} %` : `${percent(share)} %`;
  return make("li", best ? "best" : "", "", make("span", "name", name), track, make("span", "number", number));
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(body) {
  const secret = token ? ' -H "Authorization: Bearer $BMTPT_TOKEN"' : "";
  return `curl ${quoted(new URL("predict", location).href)}${secret} -H 'Content-Type: application/json' -d ${quoted(body)}`;
}

async function busy(form, action) {
  const button = form.querySelector("button");
  if (button.disabled) return;
  button.disabled = true;
  await guarded(action);
  button.disabled = false;
}

unlock.addEventListener("submit", (event) => {
  event.preventDefault();
  token = find("token").value.trim();
  find("token").value = "";
  busy(unlock, list);
});
ask.addEventListener("submit", (event) => {
  event.preventDefault();
  busy(ask, answer);
});
ask.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask.requestSubmit();
});
task.addEventListener("change", () => {
  history.replaceState(null, "", `#${task.value}`);
  say("");
  choose();
});
find("copy").addEventListener("click", () => guarded(async () => {
  await navigator.clipboard.writeText(find("curl").textContent);
  say("Copied.");
}));
guarded(list);
