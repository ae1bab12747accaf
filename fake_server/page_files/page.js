// Shows the live part anew every two seconds; without it the page loads itself anew every five.
"use strict";
const PERIOD_MS = 2000;

async function refresh() {
  const live = document.getElementById("live");
  if (document.hidden) return;
  const reply = await fetch("/", { cache: "no-store" });
  const fresh = new DOMParser().parseFromString(await reply.text(), "text/html");
  const next = fresh.getElementById("live");
  if (!next) return;
  for (const old of live.querySelectorAll("details[id][open]")) {
    const same = next.querySelector("#" + old.id);
    if (same) same.open = true;
  }
  const held = live.contains(document.activeElement) && document.activeElement.closest("[id]");
  live.replaceWith(next);
  if (held && held.id !== "live") document.querySelector(`#${held.id} > summary, #${held.id} button`)?.focus();
  document.title = fresh.title;
}

async function again() {
  try {
    await refresh();
    document.body.classList.remove("away");
  } catch {
    document.body.classList.add("away");
  }
  setTimeout(again, PERIOD_MS);
}

setTimeout(again, PERIOD_MS);
