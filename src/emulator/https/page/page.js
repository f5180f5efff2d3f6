"use strict";
// The emulator's page. It asks for the overview, shows it, and asks again: the answer comes when something has changed.
// Everything that comes from a message is set as text, never as markup.

// The address that the emulator has made ends with a token of the service policy. A fragment is not sent to servers; the tab keeps
// it, also when it is loaded anew, and the address bar does not.
function takeToken() {
  if (location.hash.length <= 1) return false;
  sessionStorage.setItem("token", location.hash.slice(1).replace(/%([0-9A-F]{2})/g, (_, hex) => String.fromCharCode(parseInt(hex, 16))));
  history.replaceState(null, "", location.pathname + location.search);
  return true;
}
takeToken();
// The address pasted into a tab that shows the page already.
addEventListener("hashchange", () => { if (takeToken()) location.reload(); });
const token = sessionStorage.getItem("token") ?? "";

// With very many devices, the address can say with which id to begin: /?from=ID
const from = encodeURIComponent(new URLSearchParams(location.search).get("from") ?? "");

const byId = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text. */
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Renders into `place` only when what is shown has changed. What has a key stays open, and keeps the focus. */
function show(place, data, render) {
  const seen = JSON.stringify(data);
  if (place.seen === seen) return;
  place.seen = seen;
  const keyed = () => [...place.querySelectorAll("[data-key]")];
  const open = new Set(keyed().filter((element) => element.open).map((element) => element.dataset.key));
  const active = document.activeElement;
  const focused = place.contains(active) ? active.closest("[data-key]")?.dataset.key : undefined;
  place.replaceChildren(...render(data));
  for (const element of keyed()) {
    if (open.has(element.dataset.key)) element.open = true;
    if (element.dataset.key === focused) (element.querySelector("summary") ?? element).focus();
  }
}

const none = (text) => make("p", { class: "none" }, text);
const clock = (time) => (time ? new Date(time).toLocaleTimeString() : "");
const body = (message) =>
  (message.body ?? (message.bodyBase64 ? `(base64) ${message.bodyBase64}` : "")) +
  (message.bodyBytes ? `… (${message.bodyBytes} bytes in all)` : "");

function chips(properties) {
  const chip = ([name, value]) => make("code", { class: "chip" }, value === null ? name : `${name}=${value}`);
  return make("div", { class: "chips" }, ...Object.entries(properties).map(chip));
}

/** Properties and body of a message. `key` is of the message, among those of its table. */
function content(message, key) {
  if (!message.properties) return [make("span", { class: "none" }, "not kept any more")];
  const text = body(message);
  const parts = [];
  if (Object.keys(message.properties).length > 0) parts.push(chips(message.properties));
  if (text !== "") parts.push(make("pre", { class: "body", tabindex: "0" }, text));
  if (parts.length === 0) parts.push(make("span", { class: "none" }, "no properties, no body"));
  if (message.systemProperties && Object.keys(message.systemProperties).length > 0) {
    parts.push(make("details", { "data-key": `system ${key}` }, make("summary", {}, "System properties"), chips(message.systemProperties)));
  }
  return parts;
}

/** A cell is a text, an element, or several. */
function table(columns, rows) {
  const head = make("thead", {}, make("tr", {}, ...columns.map((name) => make("th", { scope: "col", "data-name": name }, name))));
  const cells = (row) => row.map((cell, at) => make("td", { "data-name": columns[at] }, ...[cell].flat()));
  return make("table", {}, head, make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row)))));
}

// Completed says that the device took the message. Whether its action went well, only the device knows: that alone is green.
const OUTCOMES = { Success: ["completed", "done"], Rejected: ["rejected", "bad"], Expired: ["expired", "bad"],
  DeliveryCountExceeded: ["abandoned too often", "bad"], Purged: ["purged", "bad"] };

function badge(text, kind) {
  return make("span", { class: `badge ${kind}` }, text);
}

function outcome(status, ownKind) {
  const [text, kind] = OUTCOMES[status] || [status, "wait"];
  return badge(text, ownKind ?? kind);
}

const OWN_OUTCOMES = { succeeded: "good", repeated: "wait", unmatched: "wait", expired: "wait", dropped: "wait" };

/** What became of a message, first by the device itself where it has reported that, then by the hub. */
function outcomes(message) {
  const own = message.deviceOutcome;
  if (!own) return [outcome(message.outcome)];
  const rule = own.rule ? `rule "${own.rule}"` : "";
  // The text begins with the outcome, which the badge says already.
  const said = own.text === own.outcome ? "" : (own.text ?? "").replace(`${own.outcome}: `, "");
  const text = [rule, said].filter((part) => part !== "").join(": ");
  const note = text === "" ? [] : [make("div", { class: "note" }, text)];
  return [badge(own.outcome, OWN_OUTCOMES[own.outcome] ?? "bad"), " ", outcome(message.outcome, "hub"), ...note];
}

/** A locked message counts its lock down by itself between two overviews. */
function queueState(message) {
  if (message.state === "enqueued") return badge("enqueued", "wait");
  const element = badge("", "");
  element.dataset.until = message.lockedUntil;
  countDown(element);
  return element;
}

let skew = 0; // The emulator's clock less this browser's, in milliseconds.
function countDown(element) {
  const left = Math.max(0, Math.ceil((Date.parse(element.dataset.until) - (Date.now() + skew)) / 1000));
  element.textContent = `invisible, locked for ${left} s`;
}
setInterval(() => document.querySelectorAll("[data-until]").forEach(countDown), 1000);

function queue(messages) {
  if (messages.length === 0) return [none("The queue is empty.")];
  const rows = messages.map((m) =>
    [id(m), [queueState(m), ...abandoned(m)], content(m, m.sequenceNumber), clock(m.expires)]);
  return [table(["Message id", "State", "Content", "Expires"], rows)];
}

const id = (message) => make("code", {}, message.messageId ?? "(none)");
const abandoned = (message) =>
  message.deliveryCount > 0 ? [make("div", { class: "note" }, `abandoned ${message.deliveryCount} times`)] : [];

function ended(messages, device, said) {
  if (messages.length === 0) return [none("No message has ended yet.")];
  const rows = messages.map((m) => [id(m), outcomes(m), content(m, m.sequenceNumber), clock(m.at), again(m, device, said)]);
  return [table(["Message id", "Outcome", "Content", "At", ""], rows)];
}

function again(message, device, said) {
  if (!message.kept) return [];
  const label = `Send ${message.messageId ?? "it"} again`;
  const button = make("button", { type: "button", "data-key": `again ${message.sequenceNumber}`, "aria-label": label }, "Send again");
  const path = `/emulator/devices/${encodeURIComponent(device)}/messages/${message.sequenceNumber}/again`;
  button.addEventListener("click", () => post(path, "", said, "queued again as"));
  return button;
}

function events(messages) {
  if (messages.length === 0) return [none("The device has sent nothing yet.")];
  const rows = messages.map((m) => [String(m.number), clock(m.enqueuedTime), content(m, m.number)]);
  return [table(["Number", "At", "Content"], rows)];
}

const cards = new Map();

function card(id) {
  const places = { state: make("span"), queue: make("div"), ended: make("div"), events: make("div"), twin: make("pre"),
    said: make("span", { role: "status" }) };
  const part = (title, place, ...more) => [make("h4", {}, title, ...more), place];
  places.root = make("article", { class: "card", "aria-label": `Device ${id}` },
    make("div", {}, make("h3", {}, id), places.state),
    ...part("Queue", places.queue),
    ...part("Ended recently", places.ended, " ", places.said),
    make("details", {}, make("summary", {}, "D2C messages"), places.events),
    make("details", {}, make("summary", {}, "Twin"), places.twin));
  return places;
}

function render(overview) {
  skew = Date.parse(overview.time) - Date.now();
  byId("hub").textContent = overview.hub;
  // The other hub asks for its own token: its page.address has it.
  show(byId("hubs"), overview.otherHubs, (names) => names.flatMap((name) => {
    const host = name.includes(":") ? `[${name}]` : name;
    return [" ", make("a", { href: `https://${host}:${location.port || 443}/` }, name)];
  }));
  show(byId("clock"), [overview.clockOffsetMs, overview.clockOffsetMs && overview.time.slice(0, 16)], ([offset]) =>
    offset === 0 ? [] : [badge(`clock moved: it shows ${new Date(overview.time).toLocaleString()}`, "bad")]);
  const ids = overview.devices.map((device) => device.deviceId);
  for (const [id, places] of cards) {
    if (!ids.includes(id)) { places.root.remove(); cards.delete(id); }
  }
  for (const device of overview.devices) {
    if (!cards.has(device.deviceId)) {
      cards.set(device.deviceId, card(device.deviceId));
      byId("devices").append(cards.get(device.deviceId).root);
    }
    const places = cards.get(device.deviceId);
    show(places.state, [device.connected, device.lastActivity, device.faults], ([connected, seen, faults]) =>
      [connected ? badge("connected", "good") : badge("not connected", ""), seen ? make("span", { class: "note" }, ` last seen at ${clock(seen)} `) : "",
        ...Object.entries(faults).flatMap(([name, value]) => [" ", badge(`fault: ${value === null ? name : `${name}=${value}`}`, "bad")])]);
    show(places.queue, device.queue, queue);
    show(places.ended, device.ended, (messages) => ended(messages, device.deviceId, places.said));
    show(places.events, device.events, events);
    show(places.twin, device.twin, (twin) => [JSON.stringify(twin, null, 2)]);
  }
  const left = overview.devicesLeftOut;
  byId("more").textContent = ids.length === 0 ? "This hub has no devices." : left > 0 ? `${left} more are not shown. Add ?from=ID to the address to begin with that id.` : "";
  show(byId("device"), ids, (list) => {
    const chosen = byId("device").value;
    return list.map((id) => make("option", id === chosen ? { selected: "" } : {}, id));
  });
  byId("provisioning-section").hidden = overview.provisioning === null;
  show(byId("provisioning"), overview.provisioning, provisioning);
  show(byId("feedback"), overview.feedback, (feedback) => {
    if (feedback.length === 0) return [none("No feedback waits.")];
    const rows = feedback.map((f) => [f.originalMessageId, f.deviceId, outcome(f.statusCode), f.where, clock(f.enqueuedTimeUtc)]);
    return [table(["Message id", "Device", "Outcome", "Where", "At"], rows)];
  });
}

function provisioning(service) {
  if (service === null) return [];
  const left = (count, what) => (count > 0 ? [make("p", { class: "none" }, `${count} more ${what} are not shown.`)] : []);
  const faults = Object.entries(service.faults).flatMap(([name, value]) => [" ", badge(`fault: ${value === null ? name : `${name}=${value}`}`, "bad")]);
  const enrolments = service.enrolments.map((e) => [e.id, `${e.kind}, ${e.attestation}`, e.allocation,
    e.enabled ? badge("enabled", "good") : badge("disabled", "bad")]);
  const registrations = service.registrations.map((r) => [r.registrationId, r.group ?? "", r.assignedHub, r.deviceId,
    clock(r.lastUpdatedDateTimeUtc)]);
  return [make("p", {}, "ID scope ", make("code", {}, service.idScope), ...faults),
    make("h4", {}, "Enrolments"),
    enrolments.length === 0 ? none("There is no enrolment.") : table(["Id", "Kind", "Allocation", "Status"], enrolments),
    ...left(service.enrolmentsLeftOut, "enrolments"),
    make("h4", {}, "Registrations"),
    registrations.length === 0 ? none("No device has registered.") : table(["Registration id", "Group", "Hub", "Device", "At"], registrations),
    ...left(service.registrationsLeftOut, "registrations")];
}

function live(text, kind) {
  byId("live").textContent = text;
  byId("live").className = `badge ${kind}`;
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function follow() {
  let version = null;
  for (;;) {
    try {
      const answer = await fetch(`/emulator/overview?from=${from}${version === null ? "" : `&after=${version}`}`,
        { cache: "no-store", headers: { Authorization: token } });
      if (answer.status === 401) {
        byId("main").replaceChildren(none("Open the address in the file page.address of the emulator's state directory."));
        live("access denied", "bad");
        return;
      }
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const overview = await answer.json();
      version = overview.version;
      render(overview);
      live("live", "good");
    } catch (error) {
      version = null;
      live("the emulator does not answer", "bad");
      await pause(1000);
    }
  }
}

function addProperty() {
  const name = make("input", { "aria-label": "Property name", placeholder: "name" });
  const value = make("input", { "aria-label": "Property value", placeholder: "value" });
  const remove = make("button", { type: "button", "aria-label": "Remove this property", title: "Remove" }, "✕");
  const row = make("div", { class: "property" }, name, value, remove);
  remove.addEventListener("click", () => { row.remove(); byId("sent").replaceChildren(); byId("add").focus(); });
  byId("properties").append(row);
  return name;
}

// The properties of the form, or the field at fault and what is wrong with it. A row that is empty is none.
function properties() {
  const given = new Map();
  for (const row of document.querySelectorAll(".property")) {
    const [name, value] = row.querySelectorAll("input");
    if (name.value === "" && value.value === "") continue;
    if (name.value === "") return { field: name, fault: `The property with the value "${value.value}" has no name: give it one, or remove it.` };
    if (given.has(name.value)) return { field: name, fault: `Two properties are named "${name.value}": a message has one of each name.` };
    given.set(name.value, value.value);
  }
  return { given: Object.fromEntries(given) };
}

async function send(event) {
  event.preventDefault();
  const { given, field, fault } = properties();
  if (fault !== undefined) {
    byId("sent").className = "bad";
    byId("sent").textContent = fault;
    field.focus();
    return;
  }
  const message = { properties: given, body: byId("body").value, ack: byId("ack").value };
  if (byId("message-id").value !== "") message.messageId = byId("message-id").value;
  if (byId("expiry").value !== "") message.expiresAfterSeconds = Number(byId("expiry").value);
  const device = encodeURIComponent(byId("device").value);
  await post(`/emulator/devices/${device}/messages`, JSON.stringify(message), byId("sent"), "queued as");
}

/** Sends a message, and says in `said` under which id it is queued, or why it is not. */
async function post(path, body, said, queued) {
  try {
    const answer = await fetch(path,
      { method: "POST", headers: { Authorization: token, "Content-Type": "application/json" }, body });
    const text = await answer.json();
    said.className = answer.ok ? "good" : "bad";
    said.textContent = answer.ok ? `${queued} ${text.messageId}` : text.Message.replace(/^ErrorCode:[^;]*;/, "");
  } catch (error) {
    said.className = "bad";
    said.textContent = "the emulator does not answer";
  }
}

byId("send").addEventListener("input", () => byId("sent").replaceChildren());
byId("add").addEventListener("click", () => addProperty().focus());
byId("send").addEventListener("submit", send);
addProperty();
follow();
