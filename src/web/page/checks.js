// What `walcast check` finds, looked at when the page opens and when somebody asks.

import { at, badge, keyed, make, say } from "./dom.js";
import { time } from "./format.js";

let asked = false;

function finding() {
  const verdict = badge();
  const subject = make("span", { class: "subject" });
  const message = make("span", { class: "message" });
  const command = make("code");
  const fix = make("span", { class: "fix" }, "→ ", command);
  const element = make("li", {}, verdict, subject, message, fix);
  element.show = (found) => {
    verdict.show({ level: found.verdict, word: found.verdict });
    say(subject, found.subject);
    say(message, found.message);
    fix.hidden = found.fix === null;
    say(command, found.fix ?? "");
  };
  return element;
}

const showWrong = keyed(at("findings"), finding);
const showFine = keyed(at("findings-fine"), finding);

/** Looks once; after that only when asked to. */
export function showChecks() {
  if (!asked) look();
}

async function look() {
  asked = true;
  at("check-again").disabled = true;
  say(at("checks-note"), "Looking at PostgreSQL and every sink.");
  try {
    const answer = await fetch("/api/checks");
    if (!answer.ok) throw new Error(String(answer.status));
    show(await answer.json());
  } catch {
    say(at("checks-note"), "The checks could not be asked for.");
  } finally {
    at("check-again").disabled = false;
  }
}

function show({ at: looked, findings, again_after_seconds: wait }) {
  const [failed, doubtful, fine] = ["fail", "warn", "ok"].map((verdict) => findings.filter((found) => found.verdict === verdict));
  showWrong([...failed, ...doubtful].map((found, place) => [place, found]));
  showFine(fine.map((found, place) => [place, found]));
  at("fine").hidden = fine.length === 0;
  say(at("fine-count"), `${fine.length} as they should be`);
  const counts = `${failed.length} to mend, ${doubtful.length} to know, ${fine.length} ok`;
  say(at("checks-note"), `${counts}; looked at ${time(Date.parse(looked))}, again after ${wait} s at the soonest.`);
}

at("check-again").addEventListener("click", look);
