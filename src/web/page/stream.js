// The state as it changes, by server-sent events. A connection that says nothing counts as lost, also when nobody
// has closed it; it is opened again until it holds.

const SILENCE_MS_MAX = 3_500;
const RETRY_MS = 1_000;

/**
 * Calls `live(state)` with each state, and `lost(since)` while there is no connection: `since` is when the last
 * state came, `null` before the first. A page that nobody sees lets go of its connection: browsers have few.
 */
export function follow({ live, lost }) {
  let source = null;
  let heardAt = null;
  let watch = 0;

  const listen = () => {
    clearTimeout(watch);
    watch = setTimeout(retry, SILENCE_MS_MAX);
  };

  const open = () => {
    close();
    source = new EventSource("/api/stream");
    source.addEventListener("live", (event) => {
      heardAt = Date.now();
      listen();
      live(JSON.parse(event.data));
    });
    source.addEventListener("error", retry);
    listen();
  };

  const close = () => {
    clearTimeout(watch);
    source?.close();
    source = null;
  };

  const retry = () => {
    close();
    lost(heardAt);
    watch = setTimeout(open, RETRY_MS);
  };

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  open();
}
