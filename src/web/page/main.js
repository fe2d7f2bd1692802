// Brings the parts of the page together.

import { at, mark, say } from "./dom.js";
import { span, time } from "./format.js";
import { follow } from "./stream.js";
import { advance } from "./history.js";
import { drawCharts } from "./charts.js";
import { showPipeline } from "./pipeline.js";
import { showSource } from "./source.js";
import { showSinks } from "./sinks.js";
import { showBoard } from "./boards.js";
import { showLetters } from "./letters.js";
import { showChecks } from "./checks.js";

let ticking = 0;

function live(state) {
  clearInterval(ticking);
  mark(document.body, "data-link", "live");
  say(at("link"), `live, ${time(state.at_ms)}`);
  const { status } = state;
  say(at("about"), `${status.version}, ${status.state} for ${span(Math.max(0, (state.at_ms - Date.parse(status.since)) / 1000))}`);
  showPipeline(state);
  showSource(state);
  showSinks(state);
  showBoard();
  showLetters(state);
  showChecks();
  advance(state).then(() => drawCharts(state));
}

function lost(since) {
  clearInterval(ticking);
  const tell = () => {
    mark(document.body, "data-link", "lost");
    const known = since === null ? "not connected; " : `not connected since ${time(since)}, ${span((Date.now() - since) / 1000)} ago; `;
    say(at("link"), `${known}trying again`);
  };
  tell();
  ticking = setInterval(tell, 1_000);
}

mark(document.body, "data-link", "opening");
say(at("link"), "connecting");
follow({ live, lost });
