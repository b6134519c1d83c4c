// Keeps a page current. Nothing depends on it: without it, a page is as new as when it was loaded.

const state = document.getElementById("state");
const follow = document.getElementById("follow");
const PAUSE = 1900; // milliseconds between two loads of a page
let stream = null;
let loading = false;
let loadedAt = -PAUSE;
let later = 0; // the timer of a load that would have come too soon

for (const each of document.querySelectorAll("[data-with-script]")) each.hidden = false;

// --- the newest figures ---

function connect() {
  if (stream !== null || document.hidden || document.body.dataset.stream === undefined) return;
  stream = new EventSource(document.body.dataset.stream);
  stream.addEventListener("open", () => tell("live"));
  stream.addEventListener("figures", (event) => show(JSON.parse(event.data)));
  stream.addEventListener("error", () => {
    tell("not live");
    if (stream !== null && stream.readyState === EventSource.CLOSED) {
      disconnect();
      setTimeout(connect, 10_000); // turned away: too many pages are open, or the login has ended
    }
  });
}

function disconnect() {
  stream?.close();
  stream = null;
  tell("not live");
}

function tell(text) {
  if (state === null || state.textContent === text) return;
  state.textContent = text;
  state.dataset.state = text === "live" ? "live" : "still";
}

function show({ figures, changed }) {
  for (const each of document.querySelectorAll("[data-figure]")) {
    const text = figures[each.dataset.figure];
    if (text !== undefined && each.textContent !== text) each.textContent = text;
  }
  if (changed || document.querySelector("[data-live=always]") !== null) refresh();
}

// --- parts of the page, loaded anew ---

function isWanted(part) {
  if (part.dataset.live === "follow" && !follow?.checked) return false;
  if (part.contains(document.activeElement)) return false; // somebody is at it
  const selection = document.getSelection();
  return selection.isCollapsed || !selection.containsNode(part, true);
}

function refresh() {
  const wait = loading ? PAUSE : loadedAt + PAUSE - performance.now();
  if (wait <= 0) {
    load();
  } else if (later === 0) {
    later = setTimeout(() => {
      later = 0;
      refresh();
    }, wait);
  }
}

async function load() {
  const parts = [...document.querySelectorAll("[data-live]")].filter(isWanted);
  if (parts.length === 0) return;
  loading = true;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (!answer.ok || answer.redirected) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of parts) {
      const fresh = page.getElementById(part.id);
      if (fresh === null || !isWanted(part) || fresh.innerHTML === part.innerHTML) continue;
      part.replaceChildren(...fresh.childNodes);
    }
  } catch {
    // The server is away; the stream tells when it is back.
  } finally {
    loading = false;
    loadedAt = performance.now();
  }
}

// --- the boxes of a list ---

for (const form of document.querySelectorAll("form[data-choice]")) {
  const all = form.querySelector("[data-all]");
  all?.addEventListener("change", () => {
    for (const box of form.querySelectorAll("input[name=of]")) box.checked = all.checked;
  });
}

if (follow !== null) {
  follow.checked = sessionStorage.getItem("follow") === "yes";
  follow.addEventListener("change", () => {
    sessionStorage.setItem("follow", follow.checked ? "yes" : "no");
    if (follow.checked) refresh();
  });
}

document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
window.addEventListener("pagehide", disconnect);
window.addEventListener("pageshow", connect);
connect();
